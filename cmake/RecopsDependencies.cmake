# Finds what recops is built on and offers it under two names that are the same in the source tree and in an installed package:
#
#   recops::xsimd   xsimd >= 8.1, needed
#   recops::eigen   Eigen >= 3.4, for recops/core/eigen.hpp and the operators built on factorisations; empty where there is none
#
# Other copies than the system's: CMAKE_PREFIX_PATH (installed ones), or RECOPS_XSIMD_INCLUDE_DIR and RECOPS_EIGEN_INCLUDE_DIR
# (any folder with headers). Included by CMakeLists.txt and, once installed, by recopsConfig.cmake.
# Sets recops_DEPENDENCIES_FOUND and, when that is false, recops_DEPENDENCIES_MESSAGE.
#
# Versions are compared after finding: several packages refuse a version range or a newer major version when asked for one.
# Only include paths are taken over; Debian's xsimd target, for one, asks to be linked with a library that does not exist.

set(RECOPS_XSIMD_INCLUDE_DIR "" CACHE PATH "Folder that holds xsimd/xsimd.hpp, instead of searching for a package")
set(RECOPS_EIGEN_INCLUDE_DIR "" CACHE PATH "Folder that holds Eigen/Core, instead of searching for a package")
mark_as_advanced(RECOPS_XSIMD_INCLUDE_DIR RECOPS_EIGEN_INCLUDE_DIR)

# The numbers of the three `#define`s named in `ARGN`, joined by dots, from the first of `files` that holds them.
function(_recops_header_version out files)
  set(${out} "" PARENT_SCOPE)
  foreach(file IN LISTS files)
    set(numbers "")
    if(EXISTS "${file}")
      file(READ "${file}" text)
      foreach(name IN LISTS ARGN)
        if(text MATCHES "#define[ \t]+${name}[ \t]+([0-9]+)")
          list(APPEND numbers ${CMAKE_MATCH_1})
        endif()
      endforeach()
    endif()
    list(LENGTH numbers length)
    if(length EQUAL 3)
      list(JOIN numbers "." version)
      set(${out} "${version}" PARENT_SCOPE)
      return()
    endif()
  endforeach()
endfunction()

# Makes target recops::<name> from a folder given by hand, a target of the surrounding project, or an installed package.
# Sets recops_<name>_ORIGIN ("" when there is none) and recops_<name>_VERSION ("" when it is not known).
macro(_recops_dependency name folder package targets)
  set(recops_${name}_ORIGIN "")
  set(recops_${name}_VERSION "")
  set(_recops_includes "")
  if(NOT "${folder}" STREQUAL "")
    set(_recops_includes "${folder}")
    set(recops_${name}_ORIGIN "${folder}")
  else()
    foreach(_recops_round IN ITEMS surrounding package)
      if("${_recops_round}" STREQUAL "package" AND NOT recops_${name}_ORIGIN)
        find_package(${package} CONFIG QUIET)
      endif()
      foreach(_recops_target IN ITEMS ${targets})
        if(NOT recops_${name}_ORIGIN AND TARGET ${_recops_target})
          get_target_property(_recops_imported ${_recops_target} IMPORTED)
          if(_recops_imported)  # may be known in this folder only: copy what it says
            get_target_property(_recops_includes ${_recops_target} INTERFACE_INCLUDE_DIRECTORIES)
          else()
            set(_recops_includes "$<TARGET_PROPERTY:${_recops_target},INTERFACE_INCLUDE_DIRECTORIES>")
          endif()
          set(recops_${name}_ORIGIN "target ${_recops_target}")
        endif()
      endforeach()
    endforeach()
    set(recops_${name}_VERSION "${${package}_VERSION}")
  endif()
  if(recops_${name}_ORIGIN AND NOT TARGET recops::${name})
    add_library(recops::${name} INTERFACE IMPORTED GLOBAL)
    target_include_directories(recops::${name} INTERFACE "${_recops_includes}")
  endif()
endmacro()

_recops_dependency(xsimd "${RECOPS_XSIMD_INCLUDE_DIR}" xsimd "xsimd::xsimd;xsimd")
if(RECOPS_XSIMD_INCLUDE_DIR)
  _recops_header_version(recops_xsimd_VERSION "${RECOPS_XSIMD_INCLUDE_DIR}/xsimd/config/xsimd_config.hpp"
                         XSIMD_VERSION_MAJOR XSIMD_VERSION_MINOR XSIMD_VERSION_PATCH)
endif()
_recops_dependency(eigen "${RECOPS_EIGEN_INCLUDE_DIR}" Eigen3 "Eigen3::Eigen")
if(RECOPS_EIGEN_INCLUDE_DIR)
  _recops_header_version(recops_eigen_VERSION
                         "${RECOPS_EIGEN_INCLUDE_DIR}/Eigen/Version;${RECOPS_EIGEN_INCLUDE_DIR}/Eigen/src/Core/util/Macros.h"
                         EIGEN_WORLD_VERSION EIGEN_MAJOR_VERSION EIGEN_MINOR_VERSION)
endif()

set(recops_DEPENDENCIES_FOUND TRUE)
set(recops_DEPENDENCIES_MESSAGE "")
if(NOT recops_xsimd_ORIGIN)
  set(recops_DEPENDENCIES_FOUND FALSE)
  set(recops_DEPENDENCIES_MESSAGE
      "recops needs xsimd >= 8.1 (Debian, Ubuntu: libxsimd-dev). If it is elsewhere set CMAKE_PREFIX_PATH or RECOPS_XSIMD_INCLUDE_DIR.")
elseif(recops_xsimd_VERSION AND recops_xsimd_VERSION VERSION_LESS 8.1)
  set(recops_DEPENDENCIES_FOUND FALSE)
  set(recops_DEPENDENCIES_MESSAGE "recops needs xsimd >= 8.1, found ${recops_xsimd_VERSION} (${recops_xsimd_ORIGIN}).")
endif()
if(recops_eigen_ORIGIN AND recops_eigen_VERSION AND recops_eigen_VERSION VERSION_LESS 3.4)
  set(recops_DEPENDENCIES_FOUND FALSE)
  set(recops_DEPENDENCIES_MESSAGE "recops needs Eigen >= 3.4 or none, found ${recops_eigen_VERSION} (${recops_eigen_ORIGIN}).")
endif()

if(NOT TARGET recops::eigen)
  add_library(recops::eigen INTERFACE IMPORTED GLOBAL)  # empty, so that recops::recops links the same names everywhere
endif()
if(NOT recops_FIND_QUIETLY AND recops_DEPENDENCIES_FOUND)
  message(STATUS "recops: xsimd ${recops_xsimd_VERSION} from ${recops_xsimd_ORIGIN}")
  if(recops_eigen_ORIGIN)
    message(STATUS "recops: Eigen ${recops_eigen_VERSION} from ${recops_eigen_ORIGIN}")
  else()
    message(STATUS "recops: no Eigen; recops/core/eigen.hpp and the operators that factorise matrices are not usable")
  endif()
endif()
