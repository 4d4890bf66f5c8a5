/// Scores of one query with L stored rows of D numbers, in every format, and the selection of the best 100 of them.
///
///     taskset -c 1 build/bench/bench/recops_bench_simd_similarity
///
/// of_bandwidth: share of the speed of reading the rows (and scales) once. Cases: `dot_rows` with a float query, `int16_query` with
/// a quantised one, `several` with 8 queries at once (the rows are read once); `scan_top_k` is the scan
/// of the floats with the selection, `certified_top_k` the same result by way of a copy.
/// Peers: `eigen` is its matrix-vector product into a preallocated vector, `torch` its linear layer (for selections followed by topk),
/// `own_f32` our scan_top_k of the same rows, read from the same rotation.
#include <recops/core/random.hpp>
#include <recops/simd/certified_top_k.hpp>

#include "support/paired.hpp"
#if defined(RECOPS_BENCH_EIGEN) || __has_include(<Eigen/Core>)
#include <Eigen/Core>
#define WITH_EIGEN 1
#endif

using namespace recops;
using namespace recops_bench;

namespace {

std::string sizes(Index rows, Index cols) { return "/L:" + std::to_string(rows) + "/D:" + std::to_string(cols); }

/// Random rows in format S, as many copies as asked for, a query and room for scores.
template <class S>
struct Data {
  Index rows, cols;
  Rotation<S> stored;
  Vector<float> query, scores;
  Vector<std::int16_t> words;
  Matrix<float> scales;

  Data(Index l, Index d, Index copies) : rows(l), cols(d), stored(l * d, copies), query(d), scores(l), scales(l, 1, 0.01f) {
    Random random(1);
    for (float& x : query) x = static_cast<float>(random.normal());
    for (Index i = 0; i < l * d; ++i) {
      if constexpr (std::is_same_v<S, std::int8_t>) {
        stored[0][i] = static_cast<std::int8_t>(static_cast<int>(random.word() % 255) - 127);
      } else {
        stored[0][i] = S(static_cast<float>(random.normal()));
      }
    }
    stored.spread();
    words.resize(simd::query_codes_size(d));
  }
  auto view(Index copy) {
    const MatrixView<const S> x(stored[copy], rows, cols);
    if constexpr (std::is_same_v<S, std::int8_t>) {
      return QuantizedView{x, scales, 0};
    } else {
      return x;
    }
  }
};

template <class S>
double bytes_of(Index rows, Index cols) {
  return static_cast<double>(rows) * (static_cast<double>(cols) * sizeof(S) + (std::is_same_v<S, std::int8_t> ? 4 : 0));
}

template <class S>
void register_dots(const std::string& type, Index rows, Index cols) {
  register_case<float>("simd/dot_rows/" + type + sizes(rows, cols), [=] {
    Case<float> c;
    c.bytes = bytes_of<S>(rows, cols);
    c.copies = copies_for(c.bytes);
    c.flops = 2.0 * static_cast<double>(rows * cols);
    auto data = std::make_shared<Data<S>>(rows, cols, c.copies);
    c.kernel = [=](Index copy) { simd::dot_rows<float>(data->query, data->view(copy), data->scores); };
    if constexpr (std::is_same_v<S, float>) {
#ifdef WITH_EIGEN
      c.peers.push_back({"eigen", [=](Index copy) {
                           using M = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
                           const Eigen::Map<const M> m(data->stored[copy], rows, cols);
                           const Eigen::Map<const Eigen::VectorXf> q(data->query.data(), cols);
                           Eigen::Map<Eigen::VectorXf>(data->scores.data(), rows).noalias() = m * q;
                           benchmark::DoNotOptimize(data->scores.data());
                         }});
#endif
      c.peers.push_back(python_peer("torch", "linear",
                                    "{\"m\": 1, \"n\": " + std::to_string(rows) + ", \"k\": " + std::to_string(cols) +
                                        ", \"copies\": " + std::to_string(c.copies) + "}"));
    }
    return c;
  });
}

template <class S>
void register_others(const std::string& type, Index rows, Index cols) {
  register_case<float>("simd/dot_rows_several/" + type + sizes(rows, cols) + "/N:8", [=] {
    Case<float> c;
    c.bytes = bytes_of<S>(rows, cols);
    c.copies = copies_for(c.bytes);
    c.flops = 16.0 * static_cast<double>(rows * cols);
    auto data = std::make_shared<Data<S>>(rows, cols, c.copies);
    auto queries = std::make_shared<Matrix<float>>(8, cols, 0.5f), scores = std::make_shared<Matrix<float>>(8, rows);
    c.kernel = [=](Index copy) { simd::dot_rows<float>(*queries, data->view(copy), scores->view()); };
    return c;
  });
  register_case<float>("simd/cosine_rows/" + type + sizes(rows, cols), [=] {
    Case<float> c;
    c.bytes = bytes_of<S>(rows, cols);
    c.copies = copies_for(c.bytes);
    auto data = std::make_shared<Data<S>>(rows, cols, c.copies);
    c.kernel = [=](Index copy) { simd::cosine_rows<float>(data->query, data->view(copy), {}, data->scores); };
    return c;
  });
}

void register_int(Index rows, Index cols) {
  register_case<float>("simd/dot_rows_int16_query/int8" + sizes(rows, cols), [=] {
    Case<float> c;
    c.bytes = bytes_of<std::int8_t>(rows, cols);
    c.copies = copies_for(c.bytes);
    auto data = std::make_shared<Data<std::int8_t>>(rows, cols, c.copies);
    c.kernel = [=](Index copy) {
      const auto q = simd::quantize_query(data->query.data(), cols, data->words.data());
      simd::dot_rows(q, data->view(copy), data->scores);
    };
    return c;
  });
}

/// Rows, their copies in the formats of a cache, and what a selection needs.
struct Catalogue {
  Index k;
  Data<float> data;
  Rotation<std::int8_t> codes;
  Rotation<BFloat16> bfloats;
  Matrix<float> scales;
  Vector<float> norms, scores;
  Vector<std::int32_t> indices;
  Workspace ws;
  Index rescored = 0;

  Catalogue(Index rows, Index cols, Index k_, Index copies, bool sixteen)
      : k(k_), data(rows, cols, copies), scales(rows, 1), norms(rows), scores(k_), indices(k_) {
    if (sixteen) {
      bfloats = Rotation<BFloat16>(rows * cols, copies);
      simd::convert(data.stored[0], bfloats[0], rows * cols);
      bfloats.spread();
      simd::row_norms<float>(data.view(0), norms);
    } else {
      codes = Rotation<std::int8_t>(rows * cols, copies);
      simd::quantize_rows(data.view(0), 0, MatrixView<std::int8_t>(codes[0], rows, cols), scales.view());
      codes.spread();
    }
  }
  void scan(Index copy) { simd::scan_top_k<float>(data.query, data.view(copy), indices, scores, ws); }
  void by_int8(Index copy) {
    const QuantizedView c{MatrixView<const std::int8_t>(codes[copy], data.rows, data.cols), scales, 0};
    rescored = simd::certified_top_k(data.query, data.view(copy), c, indices, scores, ws).rescored;
  }
  void by_bfloat16(Index copy) {
    const MatrixView<const BFloat16> c(bfloats[copy], data.rows, data.cols);
    rescored = simd::certified_top_k(data.query, data.view(copy), c, norms, indices, scores, ws).rescored;
  }
};

void register_selections(Index rows, Index cols, Index k) {
  const std::string name = sizes(rows, cols) + "/k:" + std::to_string(k);
  const double all = bytes_of<float>(rows, cols);
  register_case<float>("simd/scan_top_k/f32" + name, [=] {
    Case<float> c;
    c.bytes = all;
    c.copies = copies_for(all);
    auto x = std::make_shared<Catalogue>(rows, cols, k, c.copies, false);
    c.kernel = [=](Index copy) { x->scan(copy); };
    c.peers.push_back(python_peer("torch", "scan_topk",
                                  "{\"n\": " + std::to_string(rows) + ", \"d\": " + std::to_string(cols) +
                                      ", \"k\": " + std::to_string(k) + ", \"copies\": " + std::to_string(c.copies) + "}"));
    return c;
  });
  for (const bool sixteen : {false, true}) {
    register_case<float>(std::string("simd/certified_top_k/") + (sixteen ? "bf16" : "int8") + name, [=] {
      Case<float> c;
      c.bytes = (sixteen ? bytes_of<BFloat16>(rows, cols) + 4.0 * static_cast<double>(rows) : bytes_of<std::int8_t>(rows, cols));
      c.copies = copies_for(all);
      c.working_set = all;
      auto x = std::make_shared<Catalogue>(rows, cols, k, c.copies, sixteen);
      c.kernel = [=](Index copy) { sixteen ? x->by_bfloat16(copy) : x->by_int8(copy); };
      c.peers.push_back({"own_f32", [=](Index copy) { x->scan(copy); }});
      c.kernel(0);
      std::fprintf(stderr, "%s: %td of %td rows scored again\n", sixteen ? "bf16" : "int8", x->rescored, rows);
      return c;
    });
  }
}

}  // namespace

int main(int argc, char** argv) {
  for (const Index cols : {64, 128}) {
    for (const Index rows : {1000, 10000, 100000}) {
      register_dots<float>("f32", rows, cols);
      register_dots<BFloat16>("bf16", rows, cols);
      register_dots<Float16>("f16", rows, cols);
      register_dots<std::int8_t>("int8", rows, cols);
      register_int(rows, cols);
      register_selections(rows, cols, 100);
    }
    register_others<float>("f32", 10000, cols);
    register_others<std::int8_t>("int8", 10000, cols);
  }
  return run_registered(argc, argv);
}
