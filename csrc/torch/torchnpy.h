// For C++ programs that run models with torch.ops.npy: link TorchNpy::torchnpy and call this
// once, or the linker may leave out a library from which no symbol is used.
#pragma once

namespace torchnpy {

// Does nothing; keeps the library, and so its ops, in the program.
__attribute__((visibility("default"))) void use_ops();

}  // namespace torchnpy
