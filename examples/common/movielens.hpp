/// @file   examples/common/movielens.hpp
/// @brief  Reads MovieLens (ratings.tsv and items.tsv of a folder ml-latest-small-2016) into an `InteractionLog`.
///
/// What the log means here: a rated film is an impression that was taken, so the click is 1 in every row and histories hold all
/// rated films; `Label::like` says whether the rating was high. There are no impressions that were passed over, no long views, no
/// purchases. docs/data.md has the layout, the terms and the caveats.
#pragma once
#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "interactions.hpp"
#include "tsv.hpp"

namespace examples {

struct MovieLensOptions {
  double like_rating = 4;         ///< a rating of at least this is a like
  double visit_gap_minutes = 60;  ///< a longer pause begins a new visit
};

/// The log and what it cannot hold. Films are numbered in the order of items.tsv, users by first appearance in ratings.tsv.
struct MovieLens {
  InteractionLog log;                            ///< `item_category`: the first genre listed
  std::vector<float> rating;                     ///< per row of the log, 0.5 .. 5
  std::vector<std::int64_t> user_ids, item_ids;  ///< the file's ids
  std::vector<std::string> titles;               ///< per film
  std::vector<std::int32_t> years;               ///< per film, 0 = unknown
  std::vector<std::string> genre_names;          ///< sorted; the last is "(none)" if a film has no genre
  std::vector<std::int32_t> genres;  ///< all genres of film i: genres[genre_offsets[i]] .. genres[genre_offsets[i + 1] - 1]
  std::vector<std::int32_t> genre_offsets;  ///< [items + 1]
};

/// `directory` is the folder of the files or its parent. Throws `DataError` ("file:line: reason").
inline MovieLens load_movielens(const std::string& directory, const MovieLensOptions& options = {}) {
  const std::string folder = find_data_folder(directory, "ml-latest-small-2016", "ratings.tsv");
  constexpr std::int64_t largest_id = 1'000'000'000'000;
  MovieLens data;
  InteractionLog& log = data.log;

  // Films.
  std::unordered_map<std::int64_t, std::int32_t> item_of;
  std::vector<std::vector<std::string>> names;
  for (TsvReader in(folder + "/items.tsv", {"item", "year", "genres", "title"}); in.next();) {
    const std::int64_t id = in.integer(0, 0, largest_id);
    if (!item_of.emplace(id, static_cast<std::int32_t>(data.item_ids.size())).second)
      in.fail("item " + std::to_string(id) + " is listed twice");
    const std::int64_t year = in.integer(1, 0, 2100);
    if (year != 0 && year < 1870) in.fail("year is neither 0 nor from 1870 on: '" + std::string(in.text(1)) + "'");
    names.emplace_back();
    for (std::string_view rest = in.text(2); !rest.empty();) {
      const std::size_t bar = rest.find('|');
      if (bar == 0 || bar == rest.size() - 1) in.fail("genres hold an empty name");
      names.back().emplace_back(rest.substr(0, bar));
      rest = bar == std::string_view::npos ? std::string_view() : rest.substr(bar + 1);
    }
    data.item_ids.push_back(id);
    data.years.push_back(static_cast<std::int32_t>(year));
    data.titles.emplace_back(in.text(3));
  }
  for (const auto& of_one : names) data.genre_names.insert(data.genre_names.end(), of_one.begin(), of_one.end());
  std::sort(data.genre_names.begin(), data.genre_names.end());
  data.genre_names.erase(std::unique(data.genre_names.begin(), data.genre_names.end()), data.genre_names.end());
  const auto none = static_cast<std::int32_t>(data.genre_names.size());
  bool any_without = false;
  data.genre_offsets.push_back(0);
  for (const auto& of_one : names) {
    for (const std::string& name : of_one) {
      const auto at = std::lower_bound(data.genre_names.begin(), data.genre_names.end(), name);
      data.genres.push_back(static_cast<std::int32_t>(at - data.genre_names.begin()));
    }
    if (of_one.empty()) {
      data.genres.push_back(none);
      any_without = true;
    }
    log.item_category.push_back(data.genres[static_cast<std::size_t>(data.genre_offsets.back())]);
    data.genre_offsets.push_back(static_cast<std::int32_t>(data.genres.size()));
  }
  if (any_without) data.genre_names.emplace_back("(none)");

  // Ratings.
  struct Rating {
    std::int64_t time;
    std::int32_t user, item, visit;
    std::int16_t position;
    float stars;
  };
  std::vector<Rating> ratings;
  std::unordered_map<std::int64_t, std::int32_t> user_of;
  std::unordered_set<std::uint64_t> pairs;
  for (TsvReader in(folder + "/ratings.tsv", {"user", "item", "rating", "timestamp"}); in.next();) {
    const std::int64_t user_id = in.integer(0, 0, largest_id), item_id = in.integer(1, 0, largest_id);
    const double stars = in.number(2, 0.5, 5);
    if (stars * 2 != static_cast<double>(static_cast<int>(stars * 2)))
      in.fail("rating is not a multiple of 0.5: '" + std::string(in.text(2)) + "'");
    const std::int64_t time = in.integer(3, 0, 253402300799);  // the end of the year 9999
    const auto film = item_of.find(item_id);
    if (film == item_of.end()) in.fail("item " + std::to_string(item_id) + " is not in items.tsv");
    const auto user = user_of.emplace(user_id, static_cast<std::int32_t>(user_of.size()));
    if (user.second) data.user_ids.push_back(user_id);
    const auto pair = (static_cast<std::uint64_t>(user.first->second) << 32) | static_cast<std::uint64_t>(film->second);
    if (!pairs.insert(pair).second)
      in.fail("user " + std::to_string(user_id) + " rates item " + std::to_string(item_id) + " twice");
    ratings.push_back({time, user.first->second, film->second, 0, 0, static_cast<float>(stars)});
  }

  // Visits: a user's ratings without a long pause, numbered by their first row in the log.
  std::sort(ratings.begin(), ratings.end(), [](const Rating& a, const Rating& b) {
    if (a.time != b.time) return a.time < b.time;
    return a.user != b.user ? a.user < b.user : a.item < b.item;
  });
  std::vector<std::size_t> previous(user_of.size(), ratings.size());
  std::int32_t visits = 0;
  for (std::size_t r = 0; r < ratings.size(); ++r) {
    Rating& rating = ratings[r];
    std::size_t& last = previous[static_cast<std::size_t>(rating.user)];
    if (last < ratings.size() && static_cast<double>(rating.time - ratings[last].time) <= options.visit_gap_minutes * 60) {
      rating.visit = ratings[last].visit;
      rating.position = static_cast<std::int16_t>(std::min(ratings[last].position + 1, 32767));
    } else {
      rating.visit = visits++;
    }
    last = r;
  }

  log.users = static_cast<Index>(user_of.size());
  log.items = static_cast<Index>(data.item_ids.size());
  log.categories = static_cast<Index>(data.genre_names.size());
  log.item_domain.assign(data.item_ids.size(), 0);
  log.user_group.assign(user_of.size(), 0);
  log.domain.assign(ratings.size(), 0);
  log.label(Label::click).assign(ratings.size(), 1);
  for (const Rating& rating : ratings) {
    log.user.push_back(rating.user);
    log.item.push_back(rating.item);
    log.time.push_back(rating.time);
    log.visit.push_back(rating.visit);
    log.position.push_back(rating.position);
    log.hour.push_back(static_cast<std::uint8_t>(hour_of(rating.time)));
    log.weekday.push_back(static_cast<std::uint8_t>(weekday_of(rating.time)));
    log.label(Label::like).push_back(static_cast<double>(rating.stars) >= options.like_rating ? 1 : 0);
    data.rating.push_back(rating.stars);
  }
  return data;
}

}  // namespace examples
