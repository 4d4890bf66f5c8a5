/// @file   tests/support/kernels.cpp
/// @brief  Compiles what kernels.hpp declares.
#define RECOPS_TEST_KERNEL template
#include "tests/support/kernels.hpp"
