# find_package(TorchNpy): the ops of torchnpy for a C++ program.
#   cmake -DCMAKE_PREFIX_PATH="$(python -m torchnpy --cmake-prefix)"
#   target_link_libraries(program TorchNpy::torchnpy)
#   #include <torchnpy/torchnpy.h>
include(${CMAKE_CURRENT_LIST_DIR}/TorchLibraries.cmake)

if(NOT TARGET TorchNpy::torchnpy)
  torchnpy_find_torch(TORCHNPY_TORCH_ROOT)
  if(NOT TORCHNPY_TORCH_ROOT)
    set(TorchNpy_FOUND FALSE)
    set(TorchNpy_NOT_FOUND_MESSAGE "${TORCHNPY_NO_TORCH}")
    return()
  endif()
  torchnpy_read_version(${TORCHNPY_TORCH_ROOT} TORCHNPY_TORCH_VERSION)
  get_filename_component(TORCHNPY_LIB ${CMAKE_CURRENT_LIST_DIR}/../../../lib ABSOLUTE)
  set(TORCHNPY_OPS ${TORCHNPY_LIB}/torch-${TORCHNPY_TORCH_VERSION}/libtorchnpy.so)
  if(NOT EXISTS ${TORCHNPY_OPS})
    file(GLOB TORCHNPY_HELD RELATIVE ${TORCHNPY_LIB} ${TORCHNPY_LIB}/torch-*)
    list(JOIN TORCHNPY_HELD ", " TORCHNPY_HELD)
    set(TorchNpy_FOUND FALSE)
    set(TorchNpy_NOT_FOUND_MESSAGE
        "expected a torch that torchnpy was built for (${TORCHNPY_HELD}) but found torch "
        "${TORCHNPY_TORCH_VERSION} in ${TORCHNPY_TORCH_ROOT}. Build torchnpy for it: "
        "pip install --no-deps --force-reinstall . in its source")
    string(CONCAT TorchNpy_NOT_FOUND_MESSAGE ${TorchNpy_NOT_FOUND_MESSAGE})
    return()
  endif()
  torchnpy_import_torch(TorchNpy ${TORCHNPY_TORCH_ROOT})
  add_library(TorchNpy::npy_core SHARED IMPORTED GLOBAL)
  set_target_properties(TorchNpy::npy_core PROPERTIES
    IMPORTED_LOCATION ${TORCHNPY_LIB}/libnpy_core.so)
  add_library(TorchNpy::torchnpy SHARED IMPORTED GLOBAL)
  set_target_properties(TorchNpy::torchnpy PROPERTIES
    IMPORTED_LOCATION ${TORCHNPY_OPS}
    IMPORTED_LINK_DEPENDENT_LIBRARIES TorchNpy::npy_core
    INTERFACE_INCLUDE_DIRECTORIES ${TORCHNPY_LIB}/../include
    INTERFACE_LINK_LIBRARIES TorchNpy::aten)
endif()
