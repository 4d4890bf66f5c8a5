// Oracle: histories written out by hand.
#include <recops/train/early_stopping.hpp>

#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

TEST_CASE("stops after so many evaluations without an improvement", "[train][early_stopping]") {
  EarlyStopping loss({.patience = 2, .min_delta = 0.1});
  CHECK(loss.update(1.0));
  CHECK(!loss.update(0.95));  // better, but by too little
  CHECK(!loss.should_stop());
  CHECK(loss.update(0.85));
  CHECK(loss.best() == 0.85);
  CHECK(!loss.update(std::nan("")));
  CHECK(!loss.update(0.8));
  CHECK(loss.should_stop());
  CHECK(loss.best() == 0.85);

  EarlyStopping auc({.patience = 1, .higher_is_better = true});
  CHECK(!auc.should_stop());
  CHECK(auc.update(0.5));
  CHECK(auc.update(0.6));
  CHECK(!auc.update(0.6));
  CHECK(auc.should_stop());
}

TEST_CASE("its state is visited, so that a checkpoint carries it", "[train][early_stopping]") {
  EarlyStopping a, b;
  a.update(3);
  a.update(4);
  visit([](const FieldPath&, auto& to, const auto& from) { std::copy(from.begin(), from.end(), to.begin()); }, b, a);
  for (const double v : {3.5, 3.6}) CHECK(a.update(v) == b.update(v));
  CHECK(a.should_stop());
  CHECK(b.should_stop());
}

TEST_CASE("early stopping refuses options out of range", "[train][early_stopping]") {
  CHECK(error_of([] { EarlyStopping({.patience = 0}); }) == "EarlyStopping: patience: expected patience >= 1, got 0");
  CHECK(error_of([] { EarlyStopping({.min_delta = -1}); }) == "EarlyStopping: min_delta: expected min_delta >= 0, got -1");
}
