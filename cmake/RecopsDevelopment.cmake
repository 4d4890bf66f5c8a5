# For our own tests, examples and benchmarks only; nothing here reaches a user of recops::recops.

# Compile through ccache where there is one and nobody chose a launcher; its objects serve every checkout.
if(PROJECT_IS_TOP_LEVEL AND NOT DEFINED CMAKE_CXX_COMPILER_LAUNCHER)
  find_program(RECOPS_CCACHE ccache)
  mark_as_advanced(RECOPS_CCACHE)
  if(RECOPS_CCACHE)
    set(CMAKE_CXX_COMPILER_LAUNCHER "${CMAKE_COMMAND};-E;env;CCACHE_SLOPPINESS=pch_defines,time_macros;CCACHE_BASEDIR=${PROJECT_SOURCE_DIR};CCACHE_NOHASHDIR=1;${RECOPS_CCACHE}")
  endif()
endif()
if(PROJECT_IS_TOP_LEVEL AND NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release)
endif()

# Links `target` with recops and turns on the warnings recops is free of (errors under CMAKE_COMPILE_WARNING_AS_ERROR).
function(recops_program target)
  target_link_libraries(${target} PRIVATE recops::recops)
  set_target_properties(${target} PROPERTIES CXX_EXTENSIONS OFF)
  if(CMAKE_CXX_COMPILER_ID MATCHES "GNU|Clang")
    target_compile_options(${target} PRIVATE -Wall -Wextra -Wpedantic -Wconversion -Wshadow)
  endif()
  # GCC 12 takes the deliberately undefined registers of its own AVX-512 intrinsics for a mistake (GCC bug 105593), and the
  # vector body of a loop that a short array never enters for an overrun. The clang lane and its sanitizers look instead.
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
    target_compile_options(${target} PRIVATE -Wno-uninitialized -Wno-maybe-uninitialized -Wno-array-bounds
                                             -Wno-stringop-overflow -Wno-stringop-overread)
  endif()
endfunction()
