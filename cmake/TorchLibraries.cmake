# Finds torch and defines, for our own build and for find_package(TorchNpy):
#   TORCHNPY_TORCH_ROOT     the folder of torch's include/ and lib/
#   TorchNpy::aten          ATen, TorchScript and c10
#   TorchNpy::torch_python  their bindings; for Python modules only
# Looks at Torch_DIR, at CMAKE_PREFIX_PATH (torch.utils.cmake_prefix_path) and beside the package.
#
# Not find_package(Torch): in a CUDA build of torch it stops where the CUDA toolkit is not
# installed, and we need nothing of CUDA. It adds no ABI flags: all builds since torch 2.7 use
# the compiler's default (_GLIBCXX_USE_CXX11_ABI=1).
include_guard(GLOBAL)

find_path(TORCHNPY_TORCH_CONFIG TorchConfig.cmake
          HINTS ${Torch_DIR} PATHS ${CMAKE_PREFIX_PATH} ${CMAKE_CURRENT_LIST_DIR}/../../../..
          PATH_SUFFIXES Torch share/cmake/Torch torch/share/cmake/Torch NO_DEFAULT_PATH)
if(NOT TORCHNPY_TORCH_CONFIG)
  message(FATAL_ERROR "expected torch's TorchConfig.cmake but found none; set CMAKE_PREFIX_PATH to "
                      "what python -c 'import torch; print(torch.utils.cmake_prefix_path)' prints")
endif()
get_filename_component(TORCHNPY_TORCH_ROOT ${TORCHNPY_TORCH_CONFIG}/../../.. ABSOLUTE)

foreach(name c10 torch_cpu torch_python)
  add_library(TorchNpy::${name} SHARED IMPORTED)
  set_target_properties(TorchNpy::${name} PROPERTIES
    IMPORTED_LOCATION ${TORCHNPY_TORCH_ROOT}/lib/lib${name}.so
    INTERFACE_INCLUDE_DIRECTORIES
      "${TORCHNPY_TORCH_ROOT}/include;${TORCHNPY_TORCH_ROOT}/include/torch/csrc/api/include")
endforeach()
add_library(TorchNpy::aten INTERFACE IMPORTED)
# A CUDA build's libtorch_cpu.so needs libraries of other packages, which the loader finds.
set_target_properties(TorchNpy::aten PROPERTIES
  INTERFACE_LINK_LIBRARIES "TorchNpy::torch_cpu;TorchNpy::c10"
  INTERFACE_LINK_OPTIONS "LINKER:--allow-shlib-undefined"
  INTERFACE_COMPILE_FEATURES cxx_std_20)
