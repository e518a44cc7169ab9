#include "python/credentials.h"

#include <fmt/format.h>

#include <initializer_list>
#include <utility>

#include "base/error.h"
#include "base/wait.h"
#include "python/calls.h"
#include "python/gil.h"
#include "transport/credentials_parse.h"
#include "transport/words.h"

namespace torchnpy {
namespace {

namespace py = pybind11;

// The first of the names that a mapping or an object has, unless it is None.
py::object find_value(const py::object& found, std::initializer_list<const char*> names) {
  const bool is_mapping = PyMapping_Check(found.ptr()) != 0 && py::hasattr(found, "keys");
  for (const char* const name : names) {
    py::object value = py::none();
    if (is_mapping && found.contains(name)) value = found[py::str(name)];
    if (!is_mapping) value = py::getattr(found, name, py::none());
    if (!value.is_none()) return value;
  }
  return py::none();
}

// The type only: the value may be a secret.
[[noreturn]] void fail(std::string_view expected, const py::object& found) {
  throw ArgumentError(fmt::format("credentials: expected the callable to return {} but found {}",
                                  expected, Py_TYPE(found.ptr())->tp_name));
}

std::string read_text(const py::object& found, std::string_view what, bool required,
                      std::initializer_list<const char*> names) {
  const py::object value = find_value(found, names);
  if (value.is_none() && !required) return {};
  if (!py::isinstance<py::str>(value)) fail(fmt::format("{} as a str", what), value);
  std::string text = value.cast<std::string>();
  if (text.empty() && required) fail(fmt::format("{} that is not empty", what), value);
  return text;
}

std::optional<std::chrono::system_clock::time_point> read_expiration(const py::object& found) {
  const py::object value = find_value(found, {"expiration", "expiry", "expiry_time", "Expiration"});
  if (value.is_none()) return std::nullopt;
  if (py::isinstance<py::str>(value)) {
    const auto time = parse_iso8601(value.cast<std::string>());
    if (!time) fail("an expiration that is an ISO 8601 time", value);
    return time;
  }
  const py::object datetime = py::module_::import("datetime").attr("datetime");
  if (!py::isinstance(value, datetime)) fail("an expiration that is a datetime or a str", value);
  if (value.attr("utcoffset")().is_none()) fail("an expiration with a time zone", value);
  const auto seconds = value.attr("timestamp")().cast<double>();
  return std::chrono::system_clock::time_point(
      std::chrono::duration_cast<std::chrono::system_clock::duration>(
          std::chrono::duration<double>(seconds)));
}

class CallableProvider final : public CredentialsProvider {
 public:
  explicit CallableProvider(py::object callable) : callable_(callable.release().ptr()) {}
  ~CallableProvider() override { release_object(callable_); }

  std::optional<Credentials> read() override {
    if (!is_main_thread()) return read_on_thread();
    const TakenGil gil;
    if (!gil.entered()) throw InterruptedError("interrupted: the process is ending");
    try {
      const auto found = py::reinterpret_steal<py::object>(PyObject_CallNoArgs(callable_));
      if (!found) throw py::error_already_set();
      return parse(found);
    } catch (py::error_already_set& error) {
      if (error.matches(PyExc_KeyboardInterrupt)) {
        PyErr_SetInterrupt();
        throw InterruptedError("interrupted: the callable for credentials was");
      }
      raise(error.value());
    }
  }
  std::string description() const override { return "the callable"; }

 private:
  std::optional<Credentials> read_on_thread() const {
    const auto credentials = std::make_shared<std::optional<Credentials>>();
    try {
      call_on_thread(callable_, [credentials](const py::object& found, const py::object& error) {
        if (!error.is_none()) raise(error);
        *credentials = parse(found);
      });
    } catch (const py::error_already_set& thrown) {
      const TakenGil gil;
      throw TransportError(fmt::format("credentials: {}", clean_words(thrown.what())),
                           TransportError::Kind::kDenied);
    }
    return std::move(*credentials);
  }

  [[noreturn]] static void raise(const py::object& error) {
    const std::string type = py::type::of(error).attr("__name__").cast<std::string>();
    const std::string words = describe(error);
    throw TransportError(fmt::format("credentials: the callable raised {}{}{}", type,
                                     words.empty() ? "" : ": ", words),
                         TransportError::Kind::kDenied);
  }

  static std::optional<Credentials> parse(const py::object& found) {
    if (found.is_none()) fail("credentials", found);
    Credentials credentials;
    credentials.access_key_id =
        read_text(found, "an access key", true,
                  {"access_key", "aws_access_key_id", "access_key_id", "AccessKeyId"});
    credentials.secret_access_key =
        read_text(found, "a secret key", true,
                  {"secret_key", "aws_secret_access_key", "secret_access_key", "SecretAccessKey"});
    credentials.session_token =
        read_text(found, "a token", false,
                  {"token", "session_token", "aws_session_token", "SessionToken", "Token"});
    credentials.expiration = read_expiration(found);
    return credentials;
  }

  static std::string describe(const py::object& error) {
    try {
      return clean_words(py::str(error).cast<std::string>());
    } catch (const py::error_already_set&) {
      return {};
    }
  }

  PyObject* const callable_;
};

}  // namespace

std::shared_ptr<CredentialsProvider> make_callable_provider(py::object callable) {
  return std::make_shared<CallableProvider>(std::move(callable));
}

}  // namespace torchnpy
