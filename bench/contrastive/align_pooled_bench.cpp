/// Two sequences of each user aligned by their means: `value` is the loss alone, `train` the loss with the gradients of both sides.
///
///     taskset -c 1 build/bench/bench/recops_bench_contrastive_align_pooled
///
///   contrastive/align_pooled_value/f32/B:users/L:longest/D:width        contrastive/align_pooled_train/f32/...
///
/// Sequences have 1 to L rows. Flops are those of the in-batch products, 2 B B D, with gradients 6 B B D (of_peak); bytes are the rows of
/// both sides, read once, with gradients their gradients too, read and written (of_bandwidth). Any method needs both. Peer:
/// `torch`, means by embedding_bag or of padded sequences, whichever is faster, then matmul, cross_entropy and autograd.
#include <memory>
#include <recops/contrastive/align_pooled.hpp>
#include <recops/core/random.hpp>

#include "support/paired.hpp"

using namespace recops;
using namespace recops_bench;

namespace {

struct Data {
  std::vector<std::int64_t> offsets[2];
  Rotation<float> rows[2], gradients[2];
  Index width;
  double dlog_scale = 0;
  Workspace ws;

  Data(bool train, Index users, Index longest, Index d) : width(d) {
    Random random(1);
    for (int side = 0; side < 2; ++side) {
      offsets[side].push_back(0);
      for (Index b = 0; b < users; ++b) offsets[side].push_back(offsets[side].back() + 1 + random.below(longest));
    }
    const Index copies = copies_for(bytes(train));
    for (int side = 0; side < 2; ++side) {
      const Index n = offsets[side].back() * d;
      rows[side] = Rotation<float>(n, copies);
      gradients[side] = Rotation<float>(n, copies);
      for (Index i = 0; i < n; ++i) rows[side][0][i] = static_cast<float>(random.normal()), gradients[side][0][i] = 0;
      rows[side].spread();
      gradients[side].spread();
    }
  }
  double bytes(bool train) const {
    return (train ? 3.0 : 1.0) * static_cast<double>((offsets[0].back() + offsets[1].back()) * width) * sizeof(float);
  }
  JaggedView<const float> sequences(int side, Index copy) {
    return {MatrixView<const float>(rows[side][copy], offsets[side].back(), width), offsets[side]};
  }
  MatrixView<float> gradient(int side, Index copy) {
    return MatrixView<float>(gradients[side][copy], offsets[side].back(), width);
  }
};

void add(bool train, Index users, Index longest, Index d) {
  const std::string shape = "/B:" + std::to_string(users) + "/L:" + std::to_string(longest) + "/D:" + std::to_string(d);
  register_case<float>(std::string("contrastive/align_pooled_") + (train ? "train" : "value") + "/f32" + shape, [=] {
    const auto data = std::make_shared<Data>(train, users, longest, d);
    Case<float> c;
    c.flops = (train ? 6.0 : 2.0) * static_cast<double>(users * users * d);
    c.bytes = data->bytes(train);
    c.copies = data->rows[0].copies();
    if (train) {
      c.kernel = [=](Index copy) {
        align_pooled_value_and_grad<float>(data->sequences(0, copy), data->sequences(1, copy), {}, 1, data->gradient(0, copy),
                                           data->gradient(1, copy), &data->dlog_scale, data->ws);
      };
    } else {
      c.kernel = [=](Index copy) { align_pooled<float>(data->sequences(0, copy), data->sequences(1, copy), {}, data->ws); };
    }
    c.peers.push_back(python_peer("torch", "align_pooled",
                                  R"({"users": )" + std::to_string(users) + R"(, "longest": )" + std::to_string(longest) +
                                      R"(, "width": )" + std::to_string(d) + R"(, "train": )" + (train ? "true" : "false") +
                                      R"(, "copies": )" + std::to_string(c.copies) + "}"));
    return c;
  });
}

}  // namespace

int main(int argc, char** argv) {
  for (const bool train : {false, true}) {
    add(train, 256, 50, 64);
    add(train, 1024, 50, 64);
    add(train, 1024, 200, 64);
  }
  return run_registered(argc, argv);
}
