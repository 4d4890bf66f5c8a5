# Headers, CMake package and pkg-config file. All of it is independent of the processor, so it goes to share/.
include(CMakePackageConfigHelpers)

install(DIRECTORY include/recops DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} FILES_MATCHING PATTERN "*.hpp")
install(TARGETS recops EXPORT recopsTargets)
set(_recops_package_dir ${CMAKE_INSTALL_DATADIR}/cmake/recops)
install(EXPORT recopsTargets NAMESPACE recops:: DESTINATION ${_recops_package_dir})
configure_package_config_file(cmake/recopsConfig.cmake.in recopsConfig.cmake INSTALL_DESTINATION ${_recops_package_dir})
write_basic_package_version_file(recopsConfigVersion.cmake VERSION ${PROJECT_VERSION} COMPATIBILITY SameMinorVersion
                                 ARCH_INDEPENDENT)
install(FILES ${PROJECT_BINARY_DIR}/recopsConfig.cmake ${PROJECT_BINARY_DIR}/recopsConfigVersion.cmake
              ${PROJECT_SOURCE_DIR}/cmake/RecopsDependencies.cmake DESTINATION ${_recops_package_dir})

# pkg-config: by name what it knows by name, by path what was given by path.
set(RECOPS_PC_REQUIRES "")
set(RECOPS_PC_CFLAGS "")
if(RECOPS_XSIMD_INCLUDE_DIR)
  string(APPEND RECOPS_PC_CFLAGS " -I${RECOPS_XSIMD_INCLUDE_DIR}")
else()
  list(APPEND RECOPS_PC_REQUIRES "xsimd >= 8.1")
endif()
if(RECOPS_EIGEN_INCLUDE_DIR)
  string(APPEND RECOPS_PC_CFLAGS " -I${RECOPS_EIGEN_INCLUDE_DIR}")
elseif(recops_eigen_ORIGIN)
  list(APPEND RECOPS_PC_REQUIRES "eigen3 >= 3.4")
endif()
list(JOIN RECOPS_PC_REQUIRES ", " RECOPS_PC_REQUIRES)
file(RELATIVE_PATH RECOPS_PC_PREFIX "/${CMAKE_INSTALL_DATADIR}/pkgconfig" "/")
string(REGEX REPLACE "/$" "" RECOPS_PC_PREFIX "${RECOPS_PC_PREFIX}")
configure_file(cmake/recops.pc.in recops.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/recops.pc DESTINATION ${CMAKE_INSTALL_DATADIR}/pkgconfig)
