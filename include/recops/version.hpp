/// @file   recops/version.hpp
/// @brief  The version of recops: the only place it is written (CMake and pkg-config read it from here).
#pragma once

#define RECOPS_VERSION_MAJOR 0  ///< incompatible changes (while 0, a minor release may hold some)
#define RECOPS_VERSION_MINOR 1  ///< additions
#define RECOPS_VERSION_PATCH 0  ///< corrections

/// One comparable number, e.g. `#if RECOPS_VERSION >= 100` for 0.1.0.
#define RECOPS_VERSION (RECOPS_VERSION_MAJOR * 10000 + RECOPS_VERSION_MINOR * 100 + RECOPS_VERSION_PATCH)
