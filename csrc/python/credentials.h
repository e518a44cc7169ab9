// Credentials from a Python callable.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>

#include "transport/credentials.h"

namespace torchnpy {

// `callable` returns a mapping or an object, as the Python class Client documents. It is called on
// threads that load and on a thread of the cache, never on an I/O thread. With the GIL.
std::shared_ptr<CredentialsProvider> make_callable_provider(pybind11::object callable);

}  // namespace torchnpy
