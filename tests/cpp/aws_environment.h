// A test's own environment and home: nothing of the developer's AWS settings is seen.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <vector>

namespace torchnpy {

class AwsEnvironment : public ::testing::Test {
 protected:
  AwsEnvironment() {
    std::string name = std::filesystem::temp_directory_path() / "torchnpy-XXXXXX";
    if (mkdtemp(name.data()) == nullptr) throw std::runtime_error("mkdtemp");
    home_ = name;
    std::vector<std::string> inherited;
    for (char** variable = environ; *variable != nullptr; ++variable) {
      const std::string text = *variable;
      if (text.starts_with("AWS_")) inherited.push_back(text.substr(0, text.find('=')));
    }
    for (const std::string& variable : inherited) set(variable, nullptr);
    set("HOME", home_.c_str());
    set("AWS_EC2_METADATA_DISABLED", "true");
  }
  ~AwsEnvironment() override {
    for (auto change = changes_.rbegin(); change != changes_.rend(); ++change) {
      if (change->before) {
        setenv(change->name.c_str(), change->before->c_str(), 1);
      } else {
        unsetenv(change->name.c_str());
      }
    }
    std::filesystem::remove_all(home_);
  }

  // nullptr: unset.
  void set(const std::string& name, const char* value) {
    const char* const before = std::getenv(name.c_str());
    changes_.push_back(
        {name, before != nullptr ? std::optional<std::string>(before) : std::nullopt});
    if (value != nullptr) {
      setenv(name.c_str(), value, 1);
    } else {
      unsetenv(name.c_str());
    }
  }
  // Returns its path.
  std::string write(const std::string& name, const std::string& text) {
    const std::filesystem::path path = home_ / name;
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path, std::ios::binary) << text;
    return path;
  }

  std::filesystem::path home_;

 private:
  struct Change {
    std::string name;
    std::optional<std::string> before;
  };
  std::vector<Change> changes_;
};

// Whether `text` holds all of `parts` and none of `absent`.
inline ::testing::AssertionResult has(const std::string& text,
                                      const std::vector<std::string>& parts,
                                      const std::vector<std::string>& absent = {}) {
  for (const std::string& part : parts) {
    if (text.find(part) == std::string::npos) {
      return ::testing::AssertionFailure() << '"' << text << "\" lacks \"" << part << '"';
    }
  }
  for (const std::string& part : absent) {
    if (text.find(part) != std::string::npos) {
      return ::testing::AssertionFailure() << '"' << text << "\" holds \"" << part << '"';
    }
  }
  return ::testing::AssertionSuccess();
}

inline ::testing::AssertionResult starts_with(const std::string& text, const std::string& start) {
  if (text.starts_with(start)) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure()
         << '"' << text << "\" does not start with \"" << start << '"';
}

// What the error that `run` throws says; fails the test when it throws no `Thrown`.
template <typename Thrown, typename Run>
std::string message_of(Run run) {
  try {
    run();
  } catch (const Thrown& error) {
    return error.what();
  } catch (const std::exception& error) {
    ADD_FAILURE() << "another error: " << error.what();
    return {};
  }
  ADD_FAILURE() << "no error";
  return {};
}

}  // namespace torchnpy
