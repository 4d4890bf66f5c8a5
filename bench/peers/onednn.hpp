/// @file   bench/peers/onednn.hpp
/// @brief  oneDNN: inner product with weights in the layout it chooses, reordered once, and ReLU fused.
#pragma once
#include <memory>
#include <recops/core/views.hpp>
#include <vector>

#include "support/child.hpp"
#if defined(RECOPS_BENCH_DNNL)
#include <dnnl.hpp>
#include <unordered_map>
#endif

namespace recops_bench {

/// [m, k] times weights for n outputs, plus bias, in float; weights have `copies`.
inline Peer onednn_linear([[maybe_unused]] Index m, [[maybe_unused]] Index n, [[maybe_unused]] Index k,
                          [[maybe_unused]] bool relu = false, [[maybe_unused]] Index copies = 1) {
#if defined(RECOPS_BENCH_DNNL)
  using namespace dnnl;
  struct Data {
    engine on{engine::kind::cpu, 0};
    stream queue{on};
    inner_product_forward op;
    std::vector<std::unordered_map<int, memory>> arguments;
  };
  const auto d = std::make_shared<Data>();
  using Type = memory::data_type;
  using Tag = memory::format_tag;
  const memory::desc x({m, k}, Type::f32, Tag::ab), w({n, k}, Type::f32, Tag::any), b({n}, Type::f32, Tag::a),
      y({m, n}, Type::f32, Tag::ab);
  primitive_attr attributes;
  if (relu) {
    post_ops after;
    after.append_eltwise(1.0f, algorithm::eltwise_relu, 0.0f, 0.0f);
    attributes.set_post_ops(after);
  }
  const inner_product_forward::primitive_desc chosen(inner_product_forward::desc(prop_kind::forward_inference, x, w, b, y),
                                                     attributes, d->on);
  d->op = inner_product_forward(chosen);
  memory source(x, d->on), bias(b, d->on), out(y, d->on), plain({{n, k}, Type::f32, Tag::ab}, d->on);
  for (const memory& one : {source, bias, plain}) {
    float* p = static_cast<float*>(one.get_data_handle());
    for (std::size_t i = 0; i < one.get_desc().get_size() / sizeof(float); ++i) p[i] = 0.5f;
  }
  for (Index c = 0; c < copies; ++c) {
    memory packed(chosen.weights_desc(), d->on);
    reorder(plain, packed).execute(d->queue, plain, packed);
    d->queue.wait();
    d->arguments.push_back({{DNNL_ARG_SRC, source}, {DNNL_ARG_WEIGHTS, packed}, {DNNL_ARG_BIAS, bias}, {DNNL_ARG_DST, out}});
  }
  Peer peer;
  peer.name = "onednn";
  peer.run = [d](Index copy) {
    d->op.execute(d->queue, d->arguments[static_cast<std::size_t>(copy)]);
    d->queue.wait();
  };
  return peer;
#else
  return skipped_peer("onednn", "libdnnl-dev");
#endif
}

}  // namespace recops_bench
