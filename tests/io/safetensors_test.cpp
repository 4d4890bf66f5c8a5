// Oracle: files written by the Python package, their numbers read by a parser of the tests' own (support/golden.hpp); the bytes the
// package writes for the same tensors; the layer before it was saved.
#include <recops/io/safetensors.hpp>

#include <filesystem>
#include <recops/gating/mmoe.hpp>
#include <recops/io/mapped_file.hpp>

#include "io/ranker.hpp"
#include "support/golden.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

namespace {

template <class T>
struct Tiny {
  Linear<T> first;
  Vector<std::int64_t> counter{3};
  Vector<T> none;  // a field that this layer does not have
  explicit Tiny(T value = T(0)) {
    first.weight = Matrix<T>(2, 3, value);
    first.bias = Vector<T>(2, value);
  }
  static constexpr auto fields() {
    return std::tuple{layer("first", &Tiny::first), buffer("counter", &Tiny::counter), parameter("none", &Tiny::none)};
  }
};

/// A file of `writer`, in memory.
Safetensors in_memory(SafetensorsWriter& writer, const std::string& source = "memory") {
  return Safetensors(writer.bytes(), source);
}

template <class L>
void check_refused(L layer, const Safetensors& file, const LoadOptions& options, const std::vector<std::string>& parts) {
  const auto before = all_numbers(layer);
  LoadReport report{.loaded = -1};
  const std::string reason = try_load(layer, file, options, &report);
  for (const std::string& part : parts) CHECK_THAT(reason, contains(part));
  CHECK(all_numbers(layer) == before);
  CHECK(report.loaded == -1);
  CHECK_THROWS_AS(load(layer, file, options), Error);
  CHECK(all_numbers(layer) == before);
}

}  // namespace

TEMPLATE_TEST_CASE("load reads a PyTorch model in every floating type", "[io][safetensors]", float, double) {
  using T = TestType;
  const Golden golden("safetensors_files/model_values");
  for (const std::string type : {"f64", "f32", "bf16", "f16"}) {
    CAPTURE(type);
    Ranker<T> model(2);
    const LoadReport report = load(model, python_file("model_" + type), {.names = torch_names()});
    CHECK(report.loaded == 20);
    CHECK(report.missing.empty());
    CHECK(report.unused.empty());
    CHECK(model.batch_norm.batches_tracked[0] == 3);
    const auto same = [&](const std::string& name, const T* at, Index n) {
      CAPTURE(name);
      const auto expected = golden.values<T>(type + "." + name);
      REQUIRE(static_cast<Index>(expected.size()) == n);
      CHECK(std::equal(expected.begin(), expected.end(), at));
    };
    same("items.weight", model.items.weight.values.data(), 28);
    same("attention.in_proj_weight", model.attention.in_proj_weight.data(), 48);
    same("attention.in_proj_bias", model.attention.in_proj_bias.data(), 12);
    same("attention.out_proj.weight", model.attention.out_proj.weight.data(), 16);
    same("norm.bias", model.norm.bias.data(), 4);
    for (Index e = 0; e < 3; ++e) {
      const std::string expert = "experts." + std::to_string(e);
      same(expert + ".0.weight", model.experts.hidden[0].weight.row(6 * e), 24);
      same(expert + ".0.bias", model.experts.hidden[0].bias.data() + 6 * e, 6);
      same(expert + ".2.weight", model.experts.weight.row(3 * e), 18);
      same(expert + ".2.bias", model.experts.bias.data() + 3 * e, 3);
    }
    same("batch_norm.running_mean", model.batch_norm.running_mean.data(), 3);
    same("batch_norm.running_var", model.batch_norm.running_variance.data(), 3);
    same("tower.0.weight", std::get<0>(model.tower.layers).linear.weight.data(), 15);
    same("tower.2.weight", std::get<1>(model.tower.layers).weight.data(), 5);
    same("tower.2.bias", std::get<1>(model.tower.layers).bias.data(), 1);
  }
}

TEST_CASE("save writes the order and the numbers that the Python package writes", "[io][safetensors]") {
  const TemporaryFolder folder;
  const auto rewrite = [&](auto& model, const std::string& type, Dtype dtype) {
    CAPTURE(type);
    load(model, python_file("model_" + type), {.names = torch_names()});
    const std::string path = folder.path() + "/" + type;
    save(model, path, {.names = torch_names(), .dtype = dtype});
    auto ours = file_bytes(path), theirs = file_bytes(python_file("model_" + type));
    // The counter has no shape there and the shape [1] here; all else is the same.
    const Safetensors a(std::move(ours)), b(std::move(theirs));
    REQUIRE(a.tensors().size() == b.tensors().size());
    CHECK(a.metadata() == b.metadata());
    for (std::size_t i = 0; i < a.tensors().size(); ++i) {
      const StoredTensor &x = a.tensors()[i], &y = b.tensors()[i];
      CHECK(x.name == y.name);
      CHECK(x.dtype == y.dtype);
      CHECK(x.shape == (y.name == "batch_norm.num_batches_tracked" ? std::vector<Index>{1} : y.shape));
      CHECK(x.begin == y.begin);
      REQUIRE(x.end == y.end);
      CHECK(std::memcmp(x.bytes, y.bytes, x.end - x.begin) == 0);
    }
  };
  Ranker<float> narrow(1);
  Ranker<double> wide(1);
  for (auto* type : {"f32", "bf16", "f16"})
    rewrite(narrow, type, dtype_from_name(type == std::string("f32") ? "F32" : type == std::string("f16") ? "F16" : "BF16"));
  rewrite(wide, "f64", Dtype::none);
  rewrite(wide, "bf16", Dtype::bf16);
  rewrite(wide, "f16", Dtype::f16);
}

TEMPLATE_TEST_CASE("what was saved is loaded again, in every type", "[io][safetensors]", float, double) {
  using T = TestType;
  const TemporaryFolder folder;
  const std::string path = folder.path() + "/model.safetensors";
  const Ranker<T> model(1);
  for (const Dtype dtype : {Dtype::none, Dtype::f64, Dtype::f32, Dtype::bf16, Dtype::f16}) {
    CAPTURE(dtype_name(dtype));
    save(model, path, {.prefix = "ranker.", .dtype = dtype});
    Ranker<T> loaded(2), mapped(3);
    CHECK(load(loaded, path, {.prefix = "ranker"}).loaded == 20);
    load(mapped, Safetensors(MappedFile(path), path), {.prefix = "ranker"});
    CHECK(all_numbers(mapped) == all_numbers(loaded));
    const auto a = all_numbers(model), b = all_numbers(loaded);
    REQUIRE(a.size() == b.size());
    const double error = dtype == Dtype::bf16 ? 0x1p-8 : dtype == Dtype::f16 ? 0x1p-11 : dtype == Dtype::f32 ? 0x1p-24 : 0.0;
    const double least = dtype == Dtype::f16 ? 0x1p-25 : 0.0;
    for (std::size_t i = 0; i < a.size(); ++i) CHECK(std::abs(a[i] - b[i]) <= std::max(error * std::abs(a[i]), least));
    if (dtype == Dtype::none || dtype_of<T>() == dtype || dtype == Dtype::f64) CHECK(a == b);
  }
  CHECK(std::distance(std::filesystem::directory_iterator(folder.path()), {}) == 1);  // nothing temporary is left
}

TEST_CASE("a multi-gate mixture is saved and loaded", "[io][safetensors]") {
  const TemporaryFolder folder;
  Random random(5);
  const MmoeSpec spec = MmoeSpec{.inputs = 6, .experts = 4, .outputs = 3, .tasks = 2, .hidden = {5}, .gate_hidden = {4}}.home();
  const Mmoe<float> model(spec, random);
  Mmoe<float> other(spec, random);
  save(model, folder.path() + "/mmoe");
  CHECK(all_numbers(other) != all_numbers(model));
  load(other, folder.path() + "/mmoe");
  CHECK(all_numbers(other) == all_numbers(model));
}

TEST_CASE("everything missing, unused and unfit is listed in one message", "[io][safetensors]") {
  const Matrix<float> weight(3, 2, 1.0f);
  SafetensorsWriter writer;
  writer.add("first.weight", weight.view());
  writer.add("none", leaf_values(weight));
  writer.add("second.bias", weight.view());
  writer.add("extra", weight.view());
  const Safetensors file = in_memory(writer, "half.safetensors");
  check_refused(Tiny<float>(), file, {},
                {"2 missing: first.bias, counter;", "2 unused: extra, second.bias;", "2 that do not fit: ",
                 "first.weight: expected [2, 3], got [3, 2]", "none: expected none, as the layer has none, got [6]"});
  Tiny<float> tiny;
  CHECK_THROWS_WITH(load(tiny, file), contains("load: half.safetensors: expected every tensor of the layer and no other, got 2"));
  // Shapes and types are no matter of strictness.
  check_refused(Tiny<float>(), file, {.strict = false}, {"got 2 that do not fit: "});
}

TEST_CASE("a message stays short whatever the file says", "[io][safetensors]") {
  SafetensorsWriter writer;
  const Vector<float> one{1};
  for (int i = 0; i < 500; ++i)
    writer.add("\n\x1b[31m" + std::to_string(i) + std::string(1000, 'x'), VectorView<const float>(one));
  Tiny<float> tiny;
  const std::string reason = try_load(tiny, in_memory(writer));
  CHECK_THAT(reason, contains("500 unused: \\x0A\\x1B[31m0xxx") && contains("and 480 more"));
  CHECK(reason.size() < 6000);
}

TEST_CASE("strict, ignore and keep say what may be missing and unused", "[io][safetensors]") {
  Tiny<float> saved(2.0f);
  SafetensorsWriter writer;
  writer.add("first.weight", saved.first.weight.view());
  writer.add("head.weight", saved.first.weight.view());
  writer.add("norm.num_batches_tracked", VectorView<const std::int64_t>(saved.counter));
  const Safetensors file = in_memory(writer);
  const std::vector<std::string> missing{"first.bias", "counter"}, unused{"head.weight", "norm.num_batches_tracked"};
  const auto check_loaded = [&](const LoadOptions& options) {
    Tiny<float> tiny(1.0f);
    const LoadReport report = load(tiny, file, options);
    CHECK(report.loaded == 1);
    CHECK(report.missing == missing);
    CHECK(report.unused == unused);
    CHECK(tiny.first.weight(1, 2) == 2.0f);
    CHECK(tiny.first.bias[1] == 1.0f);
    CHECK(tiny.counter[0] == 3);
  };
  check_loaded({.strict = false});
  check_loaded({.ignore = {"num_batches_tracked", "head"}, .keep = {"bias", "counter"}});
  check_refused(Tiny<float>(), file, {.ignore = {"num_batches_tracked", "head"}}, {"2 missing: first.bias, counter"});
  check_refused(Tiny<float>(), file, {.ignore = {"tracked", "hea", ""}, .keep = {"bias", "counter"}},
                {"got 2 unused: head.weight, norm.num_batches_tracked"});
}

TEST_CASE("prefix picks a part of a file and leaves the rest alone", "[io][safetensors]") {
  Tiny<float> a(1.0f), b(2.0f);
  SafetensorsWriter writer;
  for (auto [name, tiny] : {std::pair{"towers.a.", &a}, std::pair{"towers.ab.", &b}}) {
    writer.add(name + std::string("first.weight"), tiny->first.weight.view());
    writer.add(name + std::string("first.bias"), VectorView<const float>(tiny->first.bias));
    writer.add(name + std::string("counter"), VectorView<const std::int64_t>(tiny->counter));
  }
  const Safetensors file = in_memory(writer);
  Tiny<double> got;
  CHECK(load(got, file, {.prefix = "towers.ab"}).loaded == 3);
  CHECK(got.first.weight(1, 2) == 2);
  CHECK(load(got, file, {.prefix = "towers.a."}).unused.empty());
  CHECK(got.first.weight(1, 2) == 1);
  check_refused(Tiny<float>(), file, {.prefix = "towers"}, {"3 missing: towers.first.weight, ", "6 unused: towers.a.counter, "});
  check_refused(Tiny<float>(), file, {.prefix = "other"}, {"got 3 missing: other.first.weight, other.first.bias, other.counter"});
}

TEST_CASE("names: the longest rule counts, and a rule that is none is refused", "[io][safetensors]") {
  const TemporaryFolder folder;
  const std::string path = folder.path() + "/renamed";
  const Tiny<float> tiny(3.0f);
  const std::vector<NameRule> rules = {{"first", {""}}, {"first.bias", {"b.0", "b.1"}}, {"counter", {"steps"}}};
  save(tiny, path, {.prefix = "p", .names = rules});
  const Safetensors file = read_safetensors(path);
  REQUIRE(file.tensors().size() == 4);
  CHECK(file.find("p.weight")->shape == std::vector<Index>{2, 3});
  CHECK(file.find("p.b.0")->shape == std::vector<Index>{1});
  CHECK(file.find("p.b.1")->shape == std::vector<Index>{1});
  CHECK(file.find("p.steps")->dtype == Dtype::i64);
  Tiny<float> got;
  load(got, file, {.prefix = "p", .names = rules});
  CHECK(all_numbers(got) == all_numbers(tiny));

  check_refused(Tiny<float>(), file, {.names = {{"fist", {"x"}}}}, {"expected a part that the layer has in names, got \"fist\""});
  check_refused(Tiny<float>(), file, {.names = {{"first", {}}}},
                {"expected a name in the file for \"first\" in names, got none"});
  check_refused(Tiny<float>(), file, {.names = {{"first", {"a"}}, {"first", {"b"}}}}, {"two for \"first\""});
  CHECK_THAT(try_save(tiny, path, {.names = {{"counter", {"a", "b"}}}}),
             contains("2 parts share evenly, got [1] for \"counter\""));
  CHECK_THAT(try_save(tiny, path, {.names = {{"first.bias", {"first.weight"}}}}), contains("\"first.weight\" twice"));
  CHECK_THAT(try_save(tiny, path, {.dtype = Dtype::i32}), contains("expected a floating type for dtype, got I32"));
  CHECK_THROWS_WITH(save(tiny, path, {.dtype = Dtype::i32}), contains("save: " + path));
  CHECK(read_safetensors(path).tensors().size() == 4);  // and the file is as it was
}

TEST_CASE("parts of a field come together or not at all", "[io][safetensors]") {
  const Matrix<float> rows(1, 3, 1.0f), wide(1, 4, 1.0f), three(3, 3, 1.0f);
  const Vector<float> bias{7, 8};
  Vector<std::int64_t> counter{1};
  const auto file = [&](MatrixView<const float> second) {
    SafetensorsWriter writer;
    writer.add("e.0.weight", rows.view());
    if (!second.empty()) writer.add("e.1.weight", second);
    writer.add("first.bias", VectorView<const float>(bias));
    writer.add("counter", VectorView<const std::int64_t>(counter));
    return in_memory(writer);
  };
  const LoadOptions options{.names = {{"first.weight", {"e.0.weight", "e.1.weight"}}}};
  Tiny<float> tiny;
  load(tiny, file(rows), options);
  CHECK(tiny.first.weight(0, 0) == 1.0f);
  CHECK(tiny.first.weight(1, 2) == 1.0f);
  CHECK(tiny.first.bias[1] == 8.0f);
  check_refused(Tiny<float>(), file({}), options, {"1 missing: e.1.weight"});
  LoadOptions loose = options;
  loose.strict = false;
  check_refused(Tiny<float>(), file({}), loose, {"1 missing: e.1.weight"});  // half of a matrix is not no matrix
  check_refused(Tiny<float>(), file(wide), options, {"e.1.weight: expected a part of [2, 3], got [1, 4]"});
  check_refused(Tiny<float>(), file(three), options, {"e.1.weight: expected a part of [2, 3], got [3, 3]"});
  LoadOptions one = options;
  one.names[0].file = {"e.0.weight"};
  check_refused(Tiny<float>(), file({}), one, {"e.0.weight: expected [2, 3], got [1, 3]"});
  LoadOptions tied = options;  // the same rows twice: shared weights
  tied.names[0].file = {"e.0.weight", "e.0.weight"};
  load(tiny, file({}), tied);
  CHECK(tiny.first.weight(1, 0) == 1.0f);
}

TEST_CASE("further leading axes are fine where memory is the same", "[io][safetensors]") {
  struct Bank {
    Matrix<float> weight{{0, 0}, {0, 0}, {0, 0}, {0, 0}};
    Vector<float> bias{0, 0, 0, 0};
    Vector<std::int32_t> count{0};
    static constexpr auto fields() {
      return std::tuple{parameter("weight", &Bank::weight), parameter("bias", &Bank::bias), buffer("count", &Bank::count)};
    }
  };
  const Vector<float> w{1, 2, 3, 4, 5, 6, 7, 8}, b{1, 2, 3, 4};
  const Vector<std::int64_t> n{9};
  const auto file = [&](std::vector<Index> ws, std::vector<Index> bs, std::vector<Index> ns) {
    SafetensorsWriter writer;
    writer.add("weight", std::move(ws), VectorView<const float>(w));
    writer.add("bias", std::move(bs), VectorView<const float>(b));
    writer.add("count", std::move(ns), VectorView<const std::int64_t>(n));
    return in_memory(writer);
  };
  Bank bank;
  load(bank, file({2, 2, 2}, {2, 1, 2}, {}));
  CHECK(bank.weight(3, 1) == 8);
  CHECK(bank.bias[3] == 4);
  CHECK(bank.count[0] == 9);
  for (const auto& shape : {std::vector<Index>{8}, {2, 4}, {4, 2, 1}, {8, 1}, {2, 1, 4}})
    check_refused(Bank(), file(shape, {4}, {1}), {}, {"1 that do not fit: weight: expected [4, 2], got ["});
}

TEST_CASE("types: no float becomes an integer, and nothing is cut", "[io][safetensors]") {
  const Matrix<double> large(2, 3, -1e39), fine(2, 3, 0.1);
  const Matrix<std::int32_t> whole(2, 3, 1);
  const Vector<double> bias{0.5, std::numeric_limits<double>::infinity()};
  const auto file = [&](auto weight, std::vector<std::int64_t> counter, bool float_counter = false) {
    SafetensorsWriter writer;
    writer.add("first.weight", weight);
    writer.add("first.bias", VectorView<const double>(bias));
    if (float_counter)
      writer.add("counter", VectorView<const double>(bias).segment(0, 1));
    else
      writer.add("counter", VectorView<const std::int64_t>(counter));
    return in_memory(writer);
  };
  struct Small : Tiny<float> {
    Vector<std::int8_t> counter{1};
    static constexpr auto fields() {
      return std::tuple{layer(
                            "first", [](auto& s) -> auto& { return s.first; }),
                        buffer("counter", &Small::counter)};
    }
  };
  Tiny<float> tiny;
  load(tiny, file(fine.view(), {INT64_MIN}));
  CHECK(tiny.first.weight(0, 0) == 0.1f);
  CHECK(tiny.first.bias[1] == std::numeric_limits<float>::infinity());  // was infinite before
  CHECK(tiny.counter[0] == INT64_MIN);
  check_refused(Tiny<float>(), file(large.view(), {1}), {},
                {"first.weight: expected numbers that fit F32, got one of F64 that does not, at position 0"});
  check_refused(Tiny<float>(), file(whole.view(), {1}), {}, {"first.weight: expected a type that becomes F32, got I32"});
  check_refused(Tiny<float>(), file(fine.view(), {1}, true), {}, {"counter: expected a type that becomes I64, got F64"});
  Small small;
  load(small, file(fine.view(), {-128}));
  CHECK(small.counter[0] == -128);
  check_refused(Small(), file(fine.view(), {128}), {}, {"counter: expected numbers that fit I8, got one of I64"});
}

TEST_CASE("gradients by rows are neither saved nor loaded", "[io][safetensors]") {
  const TemporaryFolder folder;
  Random random(1);
  EmbeddingBag<float> bag(5, 2, 0.1, random), gradient = make_gradient(bag);
  const std::string path = folder.path() + "/bag";
  save(bag, path);
  CHECK_THAT(try_save(gradient, path + "2"), contains("expected dense tables, got a gradient by rows for \"weight\""));
  check_refused(gradient, read_safetensors(path), {}, {"weight: expected a dense table, got a gradient by rows"});
  CHECK(!std::filesystem::exists(path + "2"));
}

TEST_CASE("tables of sixteen bits and of bytes keep their bits", "[io][safetensors]") {
  struct Tables {
    Table<BFloat16> a;
    Table<Float16> b;
    Table<std::int8_t> c;
    bool flag = true;
    static constexpr auto fields() {
      return std::tuple{parameter("a", &Tables::a), parameter("b", &Tables::b), parameter("c", &Tables::c),
                        buffer("flag", &Tables::flag)};
    }
  };
  const TemporaryFolder folder;
  const std::string path = folder.path() + "/tables";
  Tables t;
  t.a.values.resize(256, 256);
  t.b.values.resize(256, 256);
  t.c.values.resize(16, 16);
  for (Index i = 0; i < 65536; ++i) {
    t.a.values.data()[i].bits = static_cast<std::uint16_t>(i);
    t.b.values.data()[i].bits = static_cast<std::uint16_t>(i);
  }
  for (Index i = 0; i < 256; ++i) t.c.values.data()[i] = static_cast<std::int8_t>(i - 128);
  save(t, path);
  CHECK(read_safetensors(path).find("a")->dtype == Dtype::bf16);
  CHECK(read_safetensors(path).find("flag")->shape.empty());
  Tables got;
  got.a.values.resize(256, 256);
  got.b.values.resize(256, 256);
  got.c.values.resize(16, 16);
  got.flag = false;
  load(got, path);
  CHECK(std::memcmp(got.a.values.data(), t.a.values.data(), 131072) == 0);
  CHECK(std::memcmp(got.b.values.data(), t.b.values.data(), 131072) == 0);
  CHECK(std::memcmp(got.c.values.data(), t.c.values.data(), 256) == 0);
  CHECK(got.flag);
}

TEST_CASE("a layer without fields takes an empty file, and no other", "[io][safetensors]") {
  struct Nothing {
    static constexpr auto fields() { return std::tuple{}; }
  };
  Nothing nothing;
  CHECK(load(nothing, python_file("empty")).loaded == 0);
  CHECK_THAT(try_load(nothing, python_file("types")), contains("21 unused: , edges, extremes, "));
  CHECK_THROWS_WITH(load(nothing, std::string("no such file")),
                    contains("read_safetensors: no such file: expected a file that can be opened, got: No such file"));
  CHECK_THAT(try_load(nothing, std::string("/")), contains("expected a regular file"));
}
