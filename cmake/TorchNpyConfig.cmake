# find_package(TorchNpy): the ops of torchnpy for a C++ program.
#   cmake -DCMAKE_PREFIX_PATH="<torchnpy>/share/cmake;<torch>/share/cmake"
#   target_link_libraries(program TorchNpy::torchnpy)
#   #include <torchnpy/torchnpy.h>
include(${CMAKE_CURRENT_LIST_DIR}/TorchLibraries.cmake)

if(NOT TARGET TorchNpy::torchnpy)
  get_filename_component(TORCHNPY_ROOT ${CMAKE_CURRENT_LIST_DIR}/../../.. ABSOLUTE)
  add_library(TorchNpy::torchnpy SHARED IMPORTED)
  set_target_properties(TorchNpy::torchnpy PROPERTIES
    IMPORTED_LOCATION ${TORCHNPY_ROOT}/lib/libtorchnpy.so
    INTERFACE_INCLUDE_DIRECTORIES ${TORCHNPY_ROOT}/include
    INTERFACE_LINK_LIBRARIES TorchNpy::aten)
endif()
