#include <cstdio>
#include <recops/attention/multi_interest.hpp>

int main() {
  using namespace recops;
  Random random(1);
  const SelfAttentiveInterests<float> extract(2, 2, 8, 0, random);  // width 2, two interests, 8 hidden units, no positions

  // Two users: three behaviours, and one.
  const Matrix<float> behaviours{{1, 0}, {0.9f, 0.1f}, {-1, 2}, {3, 4}};
  const Vector<std::int32_t> offsets{0, 3, 4};
  Matrix<float> interests(4, 2);  // user b has the rows 2 b and 2 b + 1
  Workspace scratch;
  extract.forward(JaggedView<const float>(behaviours, offsets), {}, interests, scratch);
  std::printf("one behaviour is every interest: %.0f %.0f, %.0f %.0f\n", interests(2, 0), interests(2, 1), interests(3, 0), interests(3, 1));

  const Matrix<float> target{{1, 0}, {3, 4}};
  Vector<std::int32_t> choice(2);
  choose_interest<float>(interests, target, choice);
  std::printf("interest of user 1 that answers: %d\n", choice[1]);
}
