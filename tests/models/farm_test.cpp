// Oracles: the whole model in PyTorch (golden/farm.py); central differences, align included; the serving form; what must be left alone.
#include <recops/models/farm.hpp>
#include <recops/train/gradient_check.hpp>

#include "support/allocations.hpp"
#include "support/golden_layer.hpp"
#include "support/numbers.hpp"
#include "support/threads.hpp"

using namespace recops;
using namespace recops_test;

namespace {

/// Users with sequences of 5 and 3, 0 and 2, 4 and 0, 1 and 1 behaviours and 2, 0, 1, 3 candidates; the last is the first again.
template <class T>
struct Batch {
  Matrix<T> video, live, candidates, context;
  std::vector<std::int32_t> video_offsets{0, 5, 5, 9, 10, 13}, live_offsets{0, 3, 5, 5, 6, 8},
      candidate_offsets{0, 2, 2, 3, 6, 7}, users{7, 8, 9, 10, 7};
  Batch(const FarmOptions& o, Random& random)
      : video(random_matrix<T>(13, o.width, random)),
        live(random_matrix<T>(8, o.width, random)),
        candidates(random_matrix<T>(7, o.candidate > 0 ? o.candidate : o.width, random)),
        context(random_matrix<T>(5, o.context, random)) {}
  FarmInput<T> input() const {
    return {.video = {video.view(), video_offsets},
            .live = {live.view(), live_offsets},
            .candidates = {candidates.view(), candidate_offsets},
            .context = context,
            .users = users};
  }
};

const FarmOptions variants[] = {
    {.width = 4, .length = 6},
    {.width = 4,
     .candidate = 6,
     .length = 5,
     .heads = 2,
     .dropout = 0.2,
     .context = 3,
     .gate_per_channel = true,
     .align_width = 3,
     .learn_temperature = true},
    {.width = 4, .length = 7, .bands = FarmBands::low, .intra = false, .output = FarmOutput::gated, .align = 0.7},
    {.width = 4, .length = 5, .bands = FarmBands::high, .padding = {.fill = SequenceFill::reflect}, .cross = false},
    {.width = 4, .length = 5, .bands = FarmBands::none, .intra = false, .cross = false, .output = FarmOutput::gated, .align = 0}};

}  // namespace

TEMPLATE_TEST_CASE("FARM is what PyTorch makes of its formulas, gradients and all", "[models][farm][golden]", float, double) {
  using T = TestType;
  const Golden golden("farm");
  const double bound = std::is_same_v<T, float> ? 1e-4 : 1e-11;
  Random random = random_stream(920);
  Workspace ws;
  Farm<T> model({.width = 6, .length = 7, .heads = 2, .context = 2, .align = 0.3, .align_width = 4, .learn_temperature = true},
                random);
  set_parameters<T>(golden, "", model);
  const Matrix<T> video = golden.matrix<T>("video"), live = golden.matrix<T>("live"), candidates = golden.matrix<T>("candidates"),
                  context = golden.matrix<T>("context"), dy = golden.matrix<T>("dy");
  const auto video_offsets = golden.values<std::int64_t>("video_offsets"),
             live_offsets = golden.values<std::int64_t>("live_offsets"),
             candidate_offsets = golden.values<std::int64_t>("candidate_offsets");
  const FarmInput<T> input{.video = {video.view(), video_offsets},
                           .live = {live.view(), live_offsets},
                           .candidates = {candidates.view(), candidate_offsets},
                           .context = context};
  Padded<T> y(5, 18), dv(17, 6), dl(9, 6), dc(5, 6), dx(4, 2);
  typename Farm<T>::Saved saved;
  Farm<T> gradient = zeros_like(model);
  model.forward(input, y, saved, {}, ws);
  model.backward(input, dy, saved, {.dvideo = dv, .dlive = dl, .dcandidates = dc, .dcontext = dx}, gradient, ws);
  CHECK(max_difference(y.view(), golden.matrix<double>("y").view()) < bound);
  CHECK(std::abs(saved.align_loss - golden.scalar("align")) < bound);
  CHECK(max_difference(dv.view(), golden.matrix<double>("dvideo").view()) < bound);
  CHECK(max_difference(dl.view(), golden.matrix<double>("dlive").view()) < bound);
  CHECK(max_difference(dc.view(), golden.matrix<double>("dcandidates").view()) < bound);
  CHECK(max_difference(dx.view(), golden.matrix<double>("dcontext").view()) < bound);
  visit(
      [&](const FieldPath& path, const auto& leaf) {
        if (leaf_values(leaf).empty()) return;
        const auto want = golden.values<double>("d." + path.str());
        double most = 0;
        for (Index i = 0; i < leaf_values(leaf).size(); ++i)
          most = std::max(most, std::abs(static_cast<double>(leaf_values(leaf)[i]) - want[static_cast<std::size_t>(i)]));
        CAPTURE(path.str());
        CHECK(most < 5 * bound);
      },
      gradient);
}

TEST_CASE("the gradient of FARM, align and inputs included", "[models][farm]") {
  Random random = random_stream(921);
  Workspace ws;
  for (const FarmOptions& o : variants) {
    CAPTURE(static_cast<int>(o.bands), o.intra, o.cross);
    Farm<double> model(o, random), gradient = zeros_like(model);
    Batch<double> batch(model.options, random);
    const Matrix<double> weight = random_matrix<double>(7, model.output_cols(), random);
    Matrix<double> y(7, model.output_cols());
    Farm<double>::Saved saved;
    const Step step{.seed = 5, .number = 2};
    const auto loss = [&] {
      model.forward(batch.input(), y, saved, step, ws);
      double sum = o.align * saved.align_loss;
      for (Index i = 0; i < 7; ++i) sum += simd::dot(y.row(i), weight.row(i), y.cols());
      return sum;
    };
    Matrix<double> dv(13, 4, 0.0), dl(8, 4, 0.0), dc(7, model.options.candidate, 0.0), dx(5, o.context, 0.0);
    loss();
    if (o.align > 0) CHECK(saved.align_loss > 0);
    model.backward(batch.input(), weight, saved, {.dvideo = dv, .dlive = dl, .dcandidates = dc, .dcontext = dx}, gradient, ws);
    GradientReport report;
    const auto check = [&](const char* name, Matrix<double>& x, const Matrix<double>& d) {
      check_gradient(name, leaf_values(x), leaf_values(d), loss, report);
    };
    check("video", batch.video, dv);
    check("live", batch.live, dl);
    check("candidates", batch.candidates, dc);
    check("context", batch.context, dx);
    visit([&](const FieldPath& path, auto& leaf,
              const auto& g) { check_gradient(path.str(), leaf_values(leaf), leaf_values(g), loss, report, {.most = 12}); },
          model, gradient);
    CAPTURE(report.where, report.numeric, report.analytic);
    CHECK(report.worst < 2e-6);
  }
}

TEMPLATE_TEST_CASE("FARM serves what it trained; users keep to themselves", "[models][farm]", float, double) {
  using T = TestType;
  Random random = random_stream(922);
  Workspace ws;
  Threads threads{3};
  const double bound = std::is_same_v<T, float> ? 1e-4 : 1e-11;
  for (FarmOptions o : variants) {
    o.dropout = 0;
    const Farm<T> model(o, random);
    Batch<T> batch(model.options, random);
    Padded<T> y(7, model.output_cols()), trained(7, model.output_cols()), frozen(7, model.output_cols());
    typename Farm<T>::Saved saved;
    model.forward(batch.input(), y, ws);
    model.forward(batch.input(), trained, saved, {}, ws);
    freeze(model).forward(batch.input(), frozen, ws);
    CHECK(max_difference(y.view(), trained.view()) < bound);
    CHECK(max_difference(y.view(), frozen.view()) < bound);
    CHECK((y.intact() && trained.intact() && frozen.intact()));
    CHECK(count_allocations([&] { model.forward(batch.input(), y, ws); }) == 0);
    Farm<T> gradient = make_gradient(model);
    Padded<T> dv(13, 4);
    const auto step = [&] {
      model.forward(batch.input(), trained, saved, {}, ws);
      model.backward(batch.input(), frozen.view(), saved, {.dvideo = dv}, gradient, ws);
    };
    step();
    CHECK(count_allocations(step) == 0);
    CHECK(dv.intact());
    // Three threads: the same bits.
    Workspace many(make_executor(threads, 3));
    Padded<T> shared(7, model.output_cols());
    model.forward(batch.input(), shared, many);
    CHECK(max_difference(y.view(), shared.view()) == 0);
    // A NaN of the third user, who has the candidate in row 2.
    batch.video(6, 1) = std::numeric_limits<T>::quiet_NaN();
    model.forward(batch.input(), shared, ws);
    for (Index i = 0; i < 7; ++i) {
      const bool changed = max_difference(y.view().middle_rows(i, 1), shared.view().middle_rows(i, 1)) > bound;
      CHECK(changed == (i == 2));
    }
  }
}

TEST_CASE("FARM: smaller weights, empty batches, errors", "[models][farm]") {
  Random random = random_stream(923);
  Workspace ws;
  const Farm<float> model({.width = 4, .length = 5}, random);
  const Batch<float> batch(model.options, random);
  Matrix<float> y(7, 12), half(7, 12), bytes(7, 12), none(0, 12);
  model.forward(batch.input(), y, ws);
  freeze(model, Weights<BFloat16>()).forward(batch.input(), half, ws);
  freeze(model, Weights<std::int8_t>()).forward(batch.input(), bytes, ws);
  CHECK(max_difference(y.view(), half.view()) < 0.05);
  CHECK(max_difference(y.view(), bytes.view()) < 0.05);
  const Matrix<float> nothing(0, 4);
  const std::vector<int> zero{0}, two{0, 0, 0};
  const JaggedView<const float> nobody(nothing.view(), zero), silent(nothing.view(), two);
  Farm<float>::Saved saved;
  Farm<float> gradient = make_gradient(model);
  for (const auto& who : {nobody, silent}) {
    const FarmInput<float> in{.video = who, .live = who, .candidates = who};
    model.forward(in, none, ws);
    model.forward(in, none, saved, {}, ws);
    CHECK(saved.align_loss == 0);
    model.backward(in, none.view(), saved, {}, gradient, ws);
  }
  FarmInput<float> in = batch.input();
  in.live = silent;
  CHECK(error_of([&] { model.forward(in, y, ws); }) == "Farm: live: expected 5 sequences, got 2");
  in = batch.input();
  model.forward(in, y, saved, {}, ws);
  gradient = make_gradient(model);
  Matrix<float> dcandidates(7, 4, 0.f);
  for (Matrix<float>* m : {&saved.live.f, &saved.video.target.attended, &saved.live.target.kv, &saved.video.filter.gains,
                           &saved.live.cross.norm.moments}) {
    const Matrix<float> kept = *m;
    m->resize(3, 4);
    CHECK(error_of([&] { model.backward(in, y.view(), saved, {.dcandidates = dcandidates}, gradient, ws); })
              .find("Farm::backward: saved: expected shape") == 0);
    *m = kept;
  }
  for (const float v : leaf_values(dcandidates)) CHECK(v == 0);
  in.users = IndexView(zero);
  CHECK(error_of([&] { model.forward(in, y, ws); }) == "Farm: users: expected size 5, got 1");
  const Farm<float> brief({.width = 4, .length = 4}, random);
  CHECK(error_of([&] { brief.forward(batch.input(), y, ws); }) ==
        "Farm: length: expected sequences of at most `length` rows, got 5");
  CHECK(error_of([&] { Farm<float>({.width = 4, .temperature = 0}, random); }) ==
        "Farm: temperature: expected temperature >= 0.01, got 0");
}
