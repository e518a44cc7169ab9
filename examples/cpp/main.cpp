// Runs a saved TorchScript module that loads its own input with torch.ops.npy.load; no Python.
#include <torch/script.h>
#include <torchnpy/torchnpy.h>

#include <exception>
#include <iostream>
#include <string>

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: " << argv[0] << " MODULE.pt URL\n";
    return 2;
  }
  torchnpy::use_ops();  // or the linker may leave out the library of npy::load
  try {
    torch::jit::Module module = torch::jit::load(argv[1]);
    module.eval();
    const torch::InferenceMode guard;
    const at::Tensor output = module.forward({std::string(argv[2])}).toTensor();
    std::cout << "dtype " << output.dtype() << ", shape " << output.sizes() << ", sum "
              << output.sum().item<double>() << '\n';
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}
