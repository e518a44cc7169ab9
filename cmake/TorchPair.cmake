# torchnpy_add_pair(ROOT): the two libraries that depend on the release of torch below ROOT,
# as targets torchnpy-2.13 (libtorchnpy.so) and _C-2.13, both in lib/torch-2.13. A binary made for
# one minor release of torch does not load with another.
include_guard(GLOBAL)

file(GLOB TORCH_SOURCES CONFIGURE_DEPENDS csrc/torch/*.cpp)
file(GLOB PYTHON_SOURCES CONFIGURE_DEPENDS csrc/python/*.cpp)

function(torchnpy_add_pair root)
  torchnpy_read_version(${root} version)
  if(version VERSION_LESS 2.9)
    message(FATAL_ERROR "${root}: expected torch 2.9 or newer but found ${version}")
  endif()
  if(TARGET torchnpy-${version})
    message(FATAL_ERROR "${root}: expected one torch per minor release but found ${version} again")
  endif()
  torchnpy_import_torch(torch-${version} ${root})
  if(TORCHNPY_SANITIZE)  # the core only: torch's headers hold undefined behaviour
    set(NO_UBSAN -fno-sanitize=undefined)
  endif()

  set(ops torchnpy-${version})
  set(bindings _C-${version})

  # _C: the bindings. Torch's own pybind11 comes before any other, because exception translators
  # are shared only between equal versions.
  Python_add_library(${bindings} MODULE WITH_SOABI ${PYTHON_SOURCES})
  target_include_directories(${bindings} SYSTEM BEFORE PRIVATE ${root}/include)
  target_link_libraries(${bindings} PRIVATE ${ops} torch-${version}::torch_python
                                            fmt::fmt-header-only)
  set_target_properties(${bindings} PROPERTIES OUTPUT_NAME _C BUILD_WITH_INSTALL_RPATH ON
                        INSTALL_RPATH "$ORIGIN:$ORIGIN/..:$ORIGIN/../../../torch/lib")

  # libtorchnpy.so: the ops.
  add_library(${ops} SHARED ${TORCH_SOURCES})
  torchnpy_export(${ops})
  target_link_libraries(${ops} PUBLIC npy_core torch-${version}::aten)
  target_compile_definitions(${ops} PRIVATE FMT_HEADER_ONLY)  # torch's own fmt comes first here
  set_target_properties(${ops} PROPERTIES OUTPUT_NAME torchnpy
                        INSTALL_RPATH "$ORIGIN/..:$ORIGIN/../../../torch/lib")

  torchnpy_unite(${ops} "${TORCH_SOURCES}" 20)
  torchnpy_unite(${bindings} "${PYTHON_SOURCES}" 20)

  foreach(target ${ops} ${bindings})
    target_compile_options(${target} PRIVATE ${WARNINGS} ${NO_UBSAN}
                                             -ffile-prefix-map=${root}/=torch/)
    set_target_properties(${target} PROPERTIES
                          LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/lib/torch-${version})
    install(TARGETS ${target} LIBRARY DESTINATION lib/torch-${version})
    add_dependencies(package_libraries ${target})
  endforeach()
endfunction()
