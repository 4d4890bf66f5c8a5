/// The contrastive core: `value` is the loss alone, `train` the loss with the gradients of both sides; `symmetric` the in-batch form.
///
///     taskset -c 1 build/bench/bench/recops_bench_contrastive_biased_infonce
///
///   contrastive/biased_infonce_value/f32/B:rows/K:candidates/D:width
///   contrastive/biased_infonce_train/f32/...        contrastive/inbatch_symmetric_train/f32/B:rows/D:width
///
/// Flops are those of the products that any method needs: 2 B K D for the logits and 4 B K D for the gradients, of the symmetric form
/// as well (it has one matrix of logits). Making logits again instead of keeping them, and exponentials, count as nothing. Peer:
/// `torch`, matmul and cross_entropy with preallocated logits, and its autograd.
#include <memory>
#include <recops/contrastive/in_batch.hpp>
#include <recops/core/random.hpp>

#include "support/paired.hpp"

using namespace recops;
using namespace recops_bench;

namespace {

struct Data {
  Matrix<float> u, v, du, dv;
  Vector<std::int32_t> positives;
  double dlog_scale = 0;
  Workspace ws;

  Data(Index b, Index k, Index d) : u(b, d), v(k, d), du(b, d, 0.0f), dv(k, d, 0.0f), positives(b) {
    Random random(1);
    for (Matrix<float>* m : {&u, &v})
      for (Index i = 0; i < m->rows(); ++i)
        for (Index j = 0; j < d; ++j) (*m)(i, j) = static_cast<float>(random.normal() / std::sqrt(static_cast<double>(d)));
    for (Index i = 0; i < b; ++i) positives[i] = static_cast<std::int32_t>(i % k);
  }
};

void add(const std::string& what, Index b, Index k, Index d) {
  const bool train = what.find("train") != std::string::npos, symmetric = what.find("symmetric") != std::string::npos;
  const std::string name = "contrastive/" + what + "/f32/B:" + std::to_string(b) + (symmetric ? "" : "/K:" + std::to_string(k)) +
                           "/D:" + std::to_string(d);
  register_case<float>(name, [=] {
    const auto data = std::make_shared<Data>(b, k, d);
    Case<float> c;
    c.flops = (train ? 6.0 : 2.0) * static_cast<double>(b * k * d);
    const double log_scale = std::log(10.0);
    if (symmetric) {
      c.kernel = [=] {
        inbatch_symmetric_value_and_grad<float>(data->u, data->v, {.log_scale = log_scale},
                                                {.du = data->du, .dv = data->dv, .dlog_scale = &data->dlog_scale}, data->ws);
      };
    } else if (train) {
      c.kernel = [=] {
        biased_infonce_value_and_grad<float>(data->u, data->v, data->positives, {.log_scale = log_scale},
                                             {.du = data->du, .dv = data->dv, .dlog_scale = &data->dlog_scale}, data->ws);
      };
    } else {
      c.kernel = [=] { biased_infonce<float>(data->u, data->v, data->positives, {.log_scale = log_scale}, data->ws); };
    }
    c.peers.push_back(python_peer("torch", "infonce",
                                  R"({"rows": )" + std::to_string(b) + R"(, "candidates": )" + std::to_string(k) +
                                      R"(, "width": )" + std::to_string(d) + R"(, "train": )" + (train ? "true" : "false") +
                                      R"(, "symmetric": )" + (symmetric ? "true" : "false") + "}"));
    return c;
  });
}

}  // namespace

int main(int argc, char** argv) {
  for (const char* what : {"biased_infonce_value", "biased_infonce_train"}) {
    add(what, 256, 4096, 64);
    add(what, 1024, 1024, 64);
    add(what, 256, 65536, 128);
  }
  for (const Index b : {256, 1024, 4096}) add("inbatch_symmetric_train", b, b, 64);
  return run_registered(argc, argv);
}
