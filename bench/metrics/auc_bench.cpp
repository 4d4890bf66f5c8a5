/// AUC on fresh data: many arrays take turns. Beside it the sort of (score, position) alone, and scikit-learn in a child process.
#include <algorithm>
#include <recops/core/random.hpp>
#include <recops/metrics/auc.hpp>
#include <utility>

#include "support/paired.hpp"

using namespace recops;
using namespace recops_bench;

namespace {

template <class T>
void add_auc(Index n) {
  register_case<T>("metrics/auc/" + std::string(type_name<T>()) + "/n:" + std::to_string(n), [=] {
    const double bytes = static_cast<double>(n) * (sizeof(T) + 1);
    const Index copies = std::max(n <= 1000 ? Index{1000} : Index{128}, copies_for(bytes));
    auto x = std::make_shared<Rotation<T>>(n, copies);
    auto y = std::make_shared<Rotation<std::uint8_t>>(n, copies);
    Random random(1);
    for (Index c = 0; c < copies; ++c)
      for (Index i = 0; i < n; ++i) {
        (*y)[c][i] = random.chance(0.1) ? 1 : 0;
        (*x)[c][i] = static_cast<T>(random.normal() + 0.8 * (*y)[c][i]);
      }
    const auto ws = std::make_shared<Workspace>();
    Case<T> c;
    c.copies = copies;
    c.elements = static_cast<double>(n);
    c.working_set = bytes;
    c.kernel = [=](Index copy) {
      benchmark::DoNotOptimize(auc<T>(VectorView<const T>((*x)[copy], n), VectorView<const std::uint8_t>((*y)[copy], n), *ws));
    };
    const auto pairs = std::make_shared<Vector<std::pair<T, std::uint32_t>>>(n);
    c.peers.push_back({"std_sort", [=](Index copy) {
                         const T* const from = (*x)[copy];
                         auto* const p = pairs->data();
                         for (Index i = 0; i < n; ++i) p[i] = {from[i], static_cast<std::uint32_t>(i)};
                         std::sort(p, p + n);
                         benchmark::DoNotOptimize(p);
                       }});
    c.peers.push_back(python_peer("sklearn", "roc_auc",
                                  R"({"n": )" + std::to_string(n) + R"(, "type": ")" + type_name<T>() + R"(", "copies": 32})"));
    return c;
  });
}

}  // namespace

int main(int argc, char** argv) {
  for (const Index n : {1000, 100000, 1000000}) {
    add_auc<float>(n);
    add_auc<double>(n);
  }
  return run_registered(argc, argv);
}
