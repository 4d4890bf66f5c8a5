// A second opinion on safetensors files, written from the format's description on somebody else's JSON parser (nlohmann's) and in
// another way than the library: every byte of numbers is painted, and must be painted once. For small files: it takes memory.
#pragma once
#include <cstdint>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

namespace recops_test {

/// Whether `data [size]` is a file that must be accepted; anything else must be refused.
inline bool is_sound_safetensors(const unsigned char* data, std::size_t size) {
  using nlohmann::json;
  std::uint64_t length = 0;
  if (size < 8) return false;
  std::memcpy(&length, data, 8);
  if (length > 100'000'000 || length > size - 8) return false;
  std::string header(reinterpret_cast<const char*>(data) + 8, static_cast<std::size_t>(length));
  if (header.empty() || header[0] != '{' || header.find('\0') != std::string::npos) return false;
  while (header.back() == ' ') header.pop_back();
  if (header.back() != '}') return false;

  std::vector<std::set<std::string>> keys;  // of the objects that are open
  bool twice = false;
  const auto watch = [&](int, json::parse_event_t event, json& value) {
    if (event == json::parse_event_t::object_start) keys.emplace_back();
    if (event == json::parse_event_t::object_end) keys.pop_back();
    if (event == json::parse_event_t::key) twice = !keys.back().insert(value.get<std::string>()).second || twice;
    return true;
  };
  const json file = json::parse(header, watch, false);
  if (file.is_discarded() || !file.is_object() || twice) return false;

  static const std::map<std::string, std::uint64_t> widths = {
      {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E5M2", 1}, {"F8_E4M3", 1}, {"F8_E8M0", 1}, {"I16", 2}, {"U16", 2}, {"F16", 2},
      {"BF16", 2}, {"I32", 4}, {"U32", 4}, {"F32", 4},     {"C64", 8},     {"F64", 8},     {"I64", 8}, {"U64", 8}};
  constexpr std::uint64_t limit = std::uint64_t{1} << 63;
  const auto is_size = [](const json& x) { return x.is_number_unsigned() && x.get<std::uint64_t>() < limit; };
  const std::uint64_t total = size - 8 - length;
  std::vector<unsigned char> painted(static_cast<std::size_t>(total));
  std::set<std::uint64_t> borders = {0}, empties;
  for (const auto& [name, entry] : file.items()) {
    if (!entry.is_object()) return false;
    if (name == "__metadata__") {
      for (const auto& value : entry)
        if (!value.is_string()) return false;
      continue;
    }
    if (entry.size() != 3 || !entry.contains("dtype") || !entry.contains("shape") || !entry.contains("data_offsets"))
      return false;
    const json &dtype = entry["dtype"], &shape = entry["shape"], &offsets = entry["data_offsets"];
    if (!dtype.is_string() || !widths.count(dtype.get<std::string>())) return false;
    if (!shape.is_array() || shape.size() > 64 || !offsets.is_array() || offsets.size() != 2) return false;
    if (!is_size(offsets[0]) || !is_size(offsets[1])) return false;
    __extension__ unsigned __int128 bytes = widths.at(dtype.get<std::string>());
    for (const auto& extent : shape) {
      if (!is_size(extent)) return false;
      bytes *= extent.get<std::uint64_t>();
      if (bytes >= limit) return false;
    }
    const auto begin = offsets[0].get<std::uint64_t>(), end = offsets[1].get<std::uint64_t>();
    if (begin > end || end > total || end - begin != bytes) return false;
    for (std::uint64_t i = begin; i < end; ++i)
      if (painted[static_cast<std::size_t>(i)]++) return false;
    if (begin == end) {
      empties.insert(begin);
    } else {
      borders.insert({begin, end});
    }
  }
  for (const unsigned char times : painted)
    if (!times) return false;
  for (const std::uint64_t at : empties)  // a tensor without numbers lies between others, not within one
    if (!borders.count(at)) return false;
  return true;
}

}  // namespace recops_test
