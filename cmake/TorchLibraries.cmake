# Finds torch, for our own build and for find_package(TorchNpy):
#   torchnpy_find_torch(VARIABLE)         sets it to the folder of torch's include/ and lib/, or ""
#   torchnpy_read_version(ROOT VARIABLE)  sets it to the minor release of that torch, such as 2.13
#   torchnpy_import_torch(NAME ROOT)      defines NAME::aten (ATen, TorchScript and c10) and
#                                         NAME::torch_python (their bindings, for Python modules)
#
# Not find_package(Torch): in a CUDA build of torch it stops where the CUDA toolkit is not
# installed, and we need nothing of CUDA. There are no ABI flags to take over: all builds since
# torch 2.7 use the compiler's default (_GLIBCXX_USE_CXX11_ABI=1).
include_guard(GLOBAL)

set(TORCHNPY_NO_TORCH "expected torch's TorchConfig.cmake but found none; set CMAKE_PREFIX_PATH to \
what python -m torchnpy --cmake-prefix prints")

# Looks at Torch_DIR, at CMAKE_PREFIX_PATH (torch.utils.cmake_prefix_path) and beside the package.
function(torchnpy_find_torch variable)
  find_path(TORCHNPY_TORCH_CONFIG TorchConfig.cmake
            HINTS ${Torch_DIR}
            PATHS ${CMAKE_PREFIX_PATH} ENV CMAKE_PREFIX_PATH
                  ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/../../../..
            PATH_SUFFIXES Torch share/cmake/Torch torch/share/cmake/Torch
            NO_DEFAULT_PATH NO_CACHE)
  set(root "")
  if(TORCHNPY_TORCH_CONFIG)
    get_filename_component(root ${TORCHNPY_TORCH_CONFIG}/../../.. ABSOLUTE)
  endif()
  set(${variable} "${root}" PARENT_SCOPE)
endfunction()

function(torchnpy_read_version root variable)
  set(PACKAGE_FIND_VERSION 0)
  include(${root}/share/cmake/Torch/TorchConfigVersion.cmake)
  string(REGEX MATCH "^[0-9]+\\.[0-9]+" minor "${PACKAGE_VERSION}")
  if(NOT minor)
    message(FATAL_ERROR "${root}: expected torch's version but found '${PACKAGE_VERSION}'")
  endif()
  set(${variable} ${minor} PARENT_SCOPE)
endfunction()

function(torchnpy_import_torch name root)
  foreach(library c10 torch_cpu torch_python)
    add_library(${name}::${library} SHARED IMPORTED GLOBAL)
    set_target_properties(${name}::${library} PROPERTIES
      IMPORTED_LOCATION ${root}/lib/lib${library}.so
      INTERFACE_INCLUDE_DIRECTORIES
        "${root}/include;${root}/include/torch/csrc/api/include")
  endforeach()
  add_library(${name}::aten INTERFACE IMPORTED GLOBAL)
  # A CUDA build's libtorch_cpu.so needs libraries of other packages, which the loader finds.
  set_target_properties(${name}::aten PROPERTIES
    INTERFACE_LINK_LIBRARIES "${name}::torch_cpu;${name}::c10"
    INTERFACE_LINK_OPTIONS "LINKER:--allow-shlib-undefined"
    INTERFACE_COMPILE_FEATURES cxx_std_20)
endfunction()
