#include <cstdio>
#include <recops/core/random.hpp>
#include <recops/simd/certified_top_k.hpp>

int main() {
  const recops::Index items = 20000, dimension = 64;
  recops::Matrix<float> rows(items, dimension);
  recops::Vector<float> query(dimension);
  recops::Random random(7);
  for (recops::Index i = 0; i < items * dimension; ++i) rows.data()[i] = static_cast<float>(random.normal());
  for (float& x : query) x = static_cast<float>(random.normal());

  recops::QuantizedRows codes;  // once per catalogue
  codes.assign(rows.view());

  recops::Vector<std::int32_t> scanned(10), certified(10);  // as many as are wanted
  recops::Vector<float> scores(10), certified_scores(10);
  recops::Workspace scratch;  // one per thread, kept from request to request
  recops::simd::scan_top_k<float>(query, rows, scanned, scores, scratch);
  const recops::CertifiedSelection s = recops::simd::certified_top_k(query, rows, codes, certified, certified_scores, scratch);

  bool same = true;
  for (recops::Index i = 0; i < 10; ++i) same = same && scanned[i] == certified[i] && scores[i] == certified_scores[i];
  std::printf("%td selected, %s the scan; %s\n", s.count, same ? "same as" : "unlike",
              s.rescored < items / 100 ? "fewer than 1 % of the floats were read" : "many floats were read");
}
