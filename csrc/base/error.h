// The errors of torchnpy. Each crosses into Python as the class of the same name.
//
// A message reads "<object>: expected <X> but found <Y> at byte <N>; <what to do>".
// Layers below the loader do not know the object's name; the loader adds it with
// add_context(). A message never holds a secret or a query string.
#pragma once

#include <exception>
#include <string>
#include <string_view>
#include <utility>

namespace torchnpy {

class Error : public std::exception {
 public:
  explicit Error(std::string message) : message_(std::move(message)) {}
  const char* what() const noexcept override { return message_.c_str(); }
  // Puts "<name>: " before the message.
  void add_context(std::string_view name) {
    message_.insert(0, std::string(name) + (of_member_ ? "" : ": "));
    of_member_ = false;
  }
  // Puts "[<member>]: " before the message; add_context() then gives "<name>[<member>]: ".
  void add_member(std::string_view member) {
    std::string prefix = "[";
    prefix.append(member).append("]: ");
    message_.insert(0, prefix);
    of_member_ = true;
  }

 private:
  std::string message_;
  bool of_member_ = false;
};

// A parameter is wrong. ValueError.
class ArgumentError : public Error {
  using Error::Error;
};

// The bytes break the specification, or a declared size exceeds a limit.
class FormatError : public Error {
  using Error::Error;
};

// Valid, but refused: object arrays, encryption, features that the source lacks.
class UnsupportedError : public Error {
  using Error::Error;
};

// An archive has no member of that name. KeyError.
class KeyError : public Error {
  using Error::Error;
};

// Memory of a kind that the message names cannot be had.
class MemoryError : public Error {
  using Error::Error;
};

// Another writer holds the file.
class LockError : public Error {
  using Error::Error;
};

// The waiting thread was asked to stop (Ctrl-C, interpreter exit).
class InterruptedError : public Error {
  using Error::Error;
};

class TransportError : public Error {
 public:
  enum class Kind {
    kOther,     // OSError
    kNotFound,  // 404: FileNotFoundError
    kDenied,    // 401, 403: PermissionError
    kTimeout,   // TimeoutError
    kChanged,   // the object is not the one that reading began with
    kDamaged,   // what was read is not what the store has a checksum of
    kExists,    // there is an object where none may be: FileExistsError
  };
  TransportError(std::string message, Kind kind = Kind::kOther, int http_status = 0)
      : Error(std::move(message)), kind_(kind), http_status_(http_status) {}
  Kind kind() const noexcept { return kind_; }
  // 0 when no answer came.
  int http_status() const noexcept { return http_status_; }

 private:
  Kind kind_;
  int http_status_;
};

}  // namespace torchnpy
