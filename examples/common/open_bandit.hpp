/// @file   examples/common/open_bandit.hpp
/// @brief  Reads Open Bandit logs (folder open-bandit-small): impressions, clicks and the true probability of having shown them.
///
/// There are no user ids, hence no histories and no `InteractionLog`; instead there is the propensity of the logging policy.
/// docs/data.md has the layout and the terms.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include <recops/core/views.hpp>

#include "tsv.hpp"

namespace examples {

using recops::Index;

/// One campaign under one logging policy, sorted by time.
struct OpenBanditLog {
  // Per impression.
  std::vector<std::int64_t> time_us;           ///< microseconds since 1970 UTC
  std::vector<std::int32_t> item;              ///< [0, items)
  std::vector<std::uint8_t> position;          ///< 0, 1, 2 = left, centre, right
  std::vector<std::uint8_t> click;             ///< 0 or 1
  std::vector<double> propensity;              ///< P(this item at this position) under the logging policy, in (0, 1]
  std::vector<std::int32_t> user_feature;      ///< [size, 4] category codes
  std::vector<std::int32_t> group;             ///< users of the same four codes, numbered by first appearance
  std::vector<std::int32_t> affinity_offsets;  ///< [size + 1]: the user's past clicks, a sparse row
  std::vector<std::int32_t> affinity_item;     ///< [affinity_offsets[size]]
  std::vector<std::int32_t> affinity_count;    ///< the same size, > 0
  // Per item.
  std::vector<double> item_value;           ///< the real-valued feature
  std::vector<std::int32_t> item_category;  ///< [items, 3] category codes

  Index items = 0, groups = 0;
  Index size() const { return static_cast<Index>(item.size()); }
};

/// `campaign` is "men" or "women", `policy` "random" or "bts" (Bernoulli Thompson sampling). `directory` is the folder of the
/// files or its parent. Throws `DataError` ("file:line: reason").
inline OpenBanditLog load_open_bandit(const std::string& directory, const std::string& campaign, const std::string& policy) {
  const std::string name = campaign + "-" + policy + ".log.tsv";
  const std::string folder = find_data_folder(directory, "open-bandit-small", name.c_str());
  constexpr std::int64_t most = 1'000'000'000;
  OpenBanditLog log;
  for (TsvReader in(folder + "/" + campaign + ".items.tsv", {"item", "f0", "c1", "c2", "c3"}); in.next();) {
    in.integer(0, log.items, log.items);  // numbered in order
    log.item_value.push_back(in.number(1, -1e30, 1e30));
    for (std::size_t c = 2; c <= 4; ++c) log.item_category.push_back(static_cast<std::int32_t>(in.integer(c, 0, most)));
    ++log.items;
  }

  std::map<std::tuple<std::int32_t, std::int32_t, std::int32_t, std::int32_t>, std::int32_t> groups;
  log.affinity_offsets.push_back(0);
  for (TsvReader in(folder + "/" + name,
                    {"timestamp_us", "item", "position", "click", "propensity", "uf0", "uf1", "uf2", "uf3", "affinity"});
       in.next();) {
    const std::int64_t time = in.integer(0, 0, INT64_MAX);
    if (!log.time_us.empty() && time < log.time_us.back()) in.fail("timestamp_us is before that of the line above");
    log.time_us.push_back(time);
    log.item.push_back(static_cast<std::int32_t>(in.integer(1, 0, log.items - 1)));
    log.position.push_back(static_cast<std::uint8_t>(in.integer(2, 1, 3) - 1));
    log.click.push_back(static_cast<std::uint8_t>(in.integer(3, 0, 1)));
    const double propensity = in.number(4, 0, 1);
    if (propensity == 0) in.fail("propensity is 0, yet the item was shown");
    log.propensity.push_back(propensity);
    std::int32_t code[4];
    for (std::size_t c = 0; c < 4; ++c)
      log.user_feature.push_back(code[c] = static_cast<std::int32_t>(in.integer(5 + c, 0, most)));
    log.group.push_back(
        groups.emplace(std::tuple{code[0], code[1], code[2], code[3]}, static_cast<std::int32_t>(groups.size())).first->second);
    for (std::string_view rest = in.text(9); !rest.empty();) {
      const std::size_t comma = rest.find(','), end = comma == std::string_view::npos ? rest.size() : comma;
      const std::string_view entry = rest.substr(0, end);
      const std::size_t colon = entry.find(':');
      if (colon == std::string_view::npos)
        in.fail("affinity is not a list of item:count: '" + std::string(entry.substr(0, 40)) + "'");
      log.affinity_item.push_back(
          static_cast<std::int32_t>(in.integer(entry.substr(0, colon), "affinity item", 0, log.items - 1)));
      log.affinity_count.push_back(static_cast<std::int32_t>(in.integer(entry.substr(colon + 1), "affinity count", 1, most)));
      if (end + 1 == rest.size()) in.fail("affinity ends in a comma");
      rest = end == rest.size() ? std::string_view() : rest.substr(end + 1);
    }
    log.affinity_offsets.push_back(static_cast<std::int32_t>(log.affinity_item.size()));
  }
  log.groups = static_cast<Index>(groups.size());
  return log;
}

}  // namespace examples
