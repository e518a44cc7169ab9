#include "transport/file_target.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <set>
#include <sstream>
#include <thread>

#include "aws_environment.h"
#include "base/descriptor.h"
#include "base/error.h"
#include "base/wait.h"
#include "forked_child.h"

namespace torchnpy {
namespace {

using ::torchnpy::testing::run_in_child;

class FileTargetTest : public AwsEnvironment {
 protected:
  static void write_text(Target& target, const std::string& text) {
    target.write({as_bytes(text), nullptr});
  }
  static void save(const std::string& path, const std::string& text,
                   const TargetOptions& options = {}) {
    const auto target = create_file(path, options);
    write_text(*target, text);
    target->finish();
  }
  std::string path(const std::string& name = "x") const { return home_ / name; }
  std::string read(const std::string& name = "x") const {
    std::ifstream file(home_ / name, std::ios::binary);
    std::stringstream text;
    text << file.rdbuf();
    return text.str();
  }
  std::set<std::string> names() const {
    std::set<std::string> result;
    for (const auto& entry : std::filesystem::directory_iterator(home_)) {
      result.insert(entry.path().filename());
    }
    return result;
  }
  mode_t mode(const std::string& name = "x") const {
    struct stat status{};
    ::lstat(path(name).c_str(), &status);
    return status.st_mode & 07777;
  }
};

using Names = std::set<std::string>;

const std::string kLarge(9 << 20, 'x');

TEST_F(FileTargetTest, IsSeenWhenItIsFinished) {
  for (const bool sync : {false, true}) {
    const auto target = create_file(path(), TargetOptions{std::nullopt, sync});
    EXPECT_EQ(target->name(), path());
    write_text(*target, "head");
    write_text(*target, kLarge);
    write_text(*target, "");
    write_text(*target, "tail");
    EXPECT_FALSE(std::filesystem::exists(path()));
    target->finish();
    EXPECT_TRUE(read() == "head" + kLarge + "tail");
    EXPECT_EQ(names(), Names{"x"});
    std::filesystem::remove(path());
  }
}

TEST_F(FileTargetTest, WithoutAByteIsAnEmptyFile) {
  create_file(path(), {})->finish();
  EXPECT_EQ(std::filesystem::file_size(path()), 0u);
}

TEST_F(FileTargetTest, SmallPiecesStayInOrder) {
  std::string expected;
  const auto target = create_file(path(), {});
  for (int i = 0; i < 5000; ++i) {
    const std::string piece(static_cast<size_t>(i % 100), static_cast<char>('a' + i % 26));
    write_text(*target, piece);
    expected += piece;
  }
  target->finish();
  EXPECT_TRUE(read() == expected);
}

TEST_F(FileTargetTest, AbandonedLeavesTheOldFile) {
  write("x", "old");
  {
    const auto target = create_file(path(), {});
    write_text(*target, kLarge);
    EXPECT_EQ(read(), "old");
  }
  EXPECT_EQ(read(), "old");
  EXPECT_EQ(names(), Names{"x"});
}

TEST_F(FileTargetTest, ReadersOfTheOldFileKeepIt) {
  write("x", "old");
  std::ifstream before(path());
  save(path(), "new");
  std::string text;
  before >> text;
  EXPECT_EQ(text, "old");
  EXPECT_EQ(read(), "new");
}

TEST_F(FileTargetTest, HasTheModeThatOpenGives) {
  const mode_t umask_before = ::umask(027);
  save(path("new"), "1");
  write("old", "");
  ::chmod(path("old").c_str(), 0604);
  save(path("old"), "1");
  ::umask(umask_before);
  EXPECT_EQ(mode("new"), 0640u);
  EXPECT_EQ(mode("old"), 0604u);
}

TEST_F(FileTargetTest, KeepsItsOwnerWhereItMay) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root may give files away";
  write("x", "old");
  ASSERT_EQ(::chown(path().c_str(), 1234, 5678), 0);
  save(path(), "new");
  struct stat status{};
  ASSERT_EQ(::stat(path().c_str(), &status), 0);
  EXPECT_EQ(status.st_uid, 1234u);
  EXPECT_EQ(status.st_gid, 5678u);
}

TEST_F(FileTargetTest, OfAnotherOwnerGivesAnotherGroupNoMore) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root may become another user";
  write("x", "old");
  ASSERT_EQ(::chown(path().c_str(), 1234, 5678), 0);
  ASSERT_EQ(::chmod(path().c_str(), 0666), 0);
  ASSERT_EQ(::chmod(home_.c_str(), 0777), 0);
  ::chmod(path().c_str(), 0662);
  EXPECT_EQ(run_in_child([&] {
              if (::setgid(99) != 0 || ::setuid(99) != 0) return 1;
              save(path(), "new");
              return 0;
            }),
            0);
  EXPECT_EQ(read(), "new");
  EXPECT_EQ(mode(), 0622u);
}

TEST_F(FileTargetTest, SymbolicLinksAreFollowed) {
  std::filesystem::create_directory(home_ / "folder");
  std::filesystem::create_symlink("folder/target", home_ / "link");
  std::filesystem::create_symlink("link", home_ / "x");
  for (const char* text : {"created", "replaced"}) {
    save(path(), text);
    EXPECT_EQ(read("folder/target"), text);
    EXPECT_TRUE(std::filesystem::is_symlink(home_ / "x"));
  }
  std::filesystem::create_symlink("loop", home_ / "loop");
  EXPECT_EQ(message_of<TransportError>([&] { create_file(path("loop"), {}); }),
            path("loop") + ": cannot create: Too many levels of symbolic links");
}

TEST_F(FileTargetTest, TheFolderIsThatOfTheBegin) {
  const std::filesystem::path before = std::filesystem::current_path();
  std::filesystem::current_path(home_);
  const auto target = create_file("x", {});
  write_text(*target, "text");
  std::filesystem::current_path("/");
  target->finish();
  std::filesystem::current_path(before);
  EXPECT_EQ(read(), "text");
}

TEST_F(FileTargetTest, NamesAreAsLongAsTheFileSystemTakes) {
  const std::string name(NAME_MAX, 'n');
  save(path(name), "text");
  EXPECT_EQ(read(name), "text");
  const std::string longer = path(name + "n");
  EXPECT_EQ(message_of<TransportError>([&] { create_file(longer, {}); }),
            longer + ": cannot create: File name too long");
}

TEST_F(FileTargetTest, SaversAtOnceDoNotMeet) {
  const auto first = create_file(path(), {});
  const auto second = create_file(path(), {});
  write_text(*first, "first" + kLarge);
  write_text(*second, "second");
  second->finish();
  EXPECT_EQ(read(), "second");
  first->finish();
  EXPECT_TRUE(read() == "first" + kLarge);
  EXPECT_EQ(names(), Names{"x"});
}

TEST_F(FileTargetTest, ThreadsSaveOneFileAllAtOnce) {
  std::vector<std::thread> threads;
  for (char c = 'a'; c < 'i'; ++c) {
    threads.emplace_back([&, c] {
      for (int i = 0; i < 25; ++i) save(path(), std::string(100'000, c));
    });
  }
  for (std::thread& thread : threads) thread.join();
  const std::string text = read();
  EXPECT_EQ(text, std::string(100'000, text.at(0)));
  EXPECT_EQ(names(), Names{"x"});
}

TEST_F(FileTargetTest, AKilledProcessLeavesTheOldFileAndTheNextSaveNothing) {
  write("x", "old");
  const int status = run_in_child([&]() -> int {
    // Those that finish leave gaps in the numbers.
    std::vector<std::unique_ptr<Target>> targets;
    for (int i = 0; i < 6; ++i) {
      targets.push_back(create_file(path(), {}));
      write_text(*targets.back(), kLarge);
    }
    targets[0].reset();
    targets[3].reset();
    return ::raise(SIGKILL);
  });
  EXPECT_EQ(status, -SIGKILL);
  EXPECT_EQ(read(), "old");
  EXPECT_EQ(names().size(), 5u);
  save(path(), "new");
  EXPECT_EQ(read(), "new");
  EXPECT_EQ(names(), Names{"x"});
}

TEST_F(FileTargetTest, AChildForkedMeanwhileHoldsNoLockOnTheFile) {
  const auto target = create_file(path(), {});
  const pid_t child = ::fork();
  if (child == 0) {
    for (;;) ::pause();
  }
  target->finish();
  const Descriptor file(::open(path().c_str(), O_RDWR | O_CLOEXEC));
  EXPECT_EQ(::flock(file.get(), LOCK_EX | LOCK_NB), 0);
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
}

TEST_F(FileTargetTest, AForkedChildThatDropsItLeavesItsParentTheFile) {
  auto target = create_file(path(), {});
  write_text(*target, "new");
  const int answer = run_in_child([&] {
    target.reset();
    return 0;
  });
  EXPECT_EQ(answer, 0);
  target->finish();
  EXPECT_EQ(read(), "new");
  EXPECT_EQ(names(), Names{"x"});
}

TEST_F(FileTargetTest, OfOthersIsNoLeftover) {
  const auto mine = create_file(path(), {});
  write_text(*mine, "mine" + kLarge);
  EXPECT_EQ(run_in_child([&] {
              save(path(), "theirs");
              return 0;
            }),
            0);
  mine->finish();
  EXPECT_TRUE(read() == "mine" + kLarge);
  EXPECT_EQ(names(), Names{"x"});
}

TEST_F(FileTargetTest, ThatIsTooLargeLeavesTheOldFileAndNoSignal) {
  write("x", "old");
  EXPECT_EQ(run_in_child([&] {
              const rlimit limit{5 << 20, 5 << 20};
              ::setrlimit(RLIMIT_FSIZE, &limit);
              const std::string message =
                  message_of<TransportError>([&] { save(path(), kLarge, {kLarge.size()}); });
              const bool is_expected =
                  message == path() +
                                 ": cannot write more than 5242880 of 9437184 bytes: File too "
                                 "large; what was there before is unchanged";
              return is_expected ? 0 : 1;
            }),
            0);
  EXPECT_EQ(read(), "old");
  EXPECT_EQ(names(), Names{"x"});
}

TEST_F(FileTargetTest, PipesAndDevicesAreWrittenAsTheBytesCome) {
  ASSERT_EQ(::mkfifo(path().c_str(), 0600), 0);
  std::string text;
  std::thread reader([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));  // is waited for
    text = read();
  });
  save(path(), "head" + kLarge, {std::nullopt, true});
  reader.join();
  EXPECT_TRUE(text == "head" + kLarge);
  save("/dev/null", kLarge);
  EXPECT_EQ(message_of<TransportError>([&] { save("/dev/full", kLarge); }),
            "/dev/full: cannot write more than 0 bytes: No space left on device");
}

// Such as /dev/stdout of a program whose output goes to a file.
TEST_F(FileTargetTest, WhatAProcessHasOpenIsWrittenWhereItIs) {
  write("x", "old");
  const int fd = ::open(path().c_str(), O_RDWR | O_CLOEXEC);
  const std::string link = home_ / "link";
  std::filesystem::create_symlink("/proc/self/fd/" + std::to_string(fd), link);
  save(link, "new");
  char text[4] = {};
  EXPECT_EQ(::pread(fd, text, sizeof(text), 0), 3);
  EXPECT_STREQ(text, "new");
  ::close(fd);
}

TEST_F(FileTargetTest, IfNoneMatchNeverReplaces) {
  const TargetOptions options{std::nullopt, false, true};
  const std::string expected =
      path() +
      ": expected no file but found one; choose another name, or allow if_none_match=False";
  const auto kind_of = [&](auto call) {
    try {
      call();
    } catch (const TransportError& error) {
      EXPECT_EQ(error.what(), expected);
      return error.kind();
    }
    return TransportError::Kind::kOther;
  };
  {
    const auto target = create_file(path(), options);
    write_text(*target, "mine");
    write("x", "theirs");
    EXPECT_EQ(kind_of([&] { target->finish(); }), TransportError::Kind::kExists);
  }
  EXPECT_EQ(read(), "theirs");
  EXPECT_EQ(names(), Names{"x"});
  EXPECT_EQ(kind_of([&] { create_file(path(), options); }), TransportError::Kind::kExists);
  std::filesystem::remove(path());
  std::filesystem::create_symlink("nowhere", path());  // as O_EXCL has it
  EXPECT_EQ(kind_of([&] { create_file(path(), options); }), TransportError::Kind::kExists);
  std::filesystem::remove(path());
  save(path(), "mine", options);
  EXPECT_EQ(read(), "mine");
}

TEST_F(FileTargetTest, WhatCannotBeWrittenSaysWhy) {
  const auto error_of = [](const std::string& at, TransportError::Kind kind) {
    try {
      create_file(at, {});
    } catch (const TransportError& error) {
      EXPECT_EQ(error.kind(), kind) << error.what();
      return std::string(error.what());
    }
    return std::string("no error");
  };
  using Kind = TransportError::Kind;
  EXPECT_EQ(error_of(path("no/x"), Kind::kNotFound),
            path("no/x") + ": cannot create: No such file or directory");
  EXPECT_EQ(error_of("", Kind::kOther), ": cannot create: Is a directory");
  EXPECT_EQ(error_of(home_, Kind::kOther), home_.string() + ": cannot create: Is a directory");
  EXPECT_EQ(error_of(path("x/"), Kind::kNotFound),
            path("x/") + ": cannot create: No such file or directory");
  EXPECT_EQ(message_of<ArgumentError>([] { create_file(std::string("a\0b", 3), {}); }),
            "a: expected a path but found NUL at byte 1");
}

TEST_F(FileTargetTest, FilesAndFoldersThatOneMayNotWriteAreDenied) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root may become another user";
  write("x", "old");
  ::chmod(path().c_str(), 0444);
  std::filesystem::create_directory(home_ / "folder");
  ::chmod(home_.c_str(), 0777);
  const auto denied = [&](const std::string& at, const std::string& what) {
    return run_in_child([&] {
      if (::setgid(99) != 0 || ::setuid(99) != 0) return 1;
      try {
        save(at, "new");
      } catch (const TransportError& error) {
        const bool is_expected = error.what() == at + what + "Permission denied" &&
                                 error.kind() == TransportError::Kind::kDenied;
        return is_expected ? 0 : 2;
      }
      return 3;
    });
  };
  EXPECT_EQ(denied(path(), ": cannot write: "), 0);
  EXPECT_EQ(denied(path("folder/x"), ": cannot create a temporary file in its folder: "), 0);
  EXPECT_EQ(read(), "old");
}

TEST_F(FileTargetTest, AnInterruptLeavesTheOldFile) {
  write("x", "old");
  set_interrupt_check([] { return true; });
  const std::string message = message_of<InterruptedError>([&] {
    const auto target = create_file(path(), {});
    for (;;) write_text(*target, kLarge.substr(0, 1 << 20));
  });
  EXPECT_EQ(message, path() + ": interrupted while it was saved");
  const std::string fifo = path("fifo");
  ASSERT_EQ(::mkfifo(fifo.c_str(), 0600), 0);
  EXPECT_EQ(message_of<InterruptedError>([&] { create_file(fifo, {}); }),
            fifo + ": interrupted before it was read");
  set_interrupt_check(nullptr);
  EXPECT_EQ(read(), "old");
  EXPECT_EQ(names(), (Names{"fifo", "x"}));
}

}  // namespace
}  // namespace torchnpy
