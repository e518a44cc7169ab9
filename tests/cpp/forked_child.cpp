#include "forked_child.h"

#include <sys/wait.h>
#include <unistd.h>

static bool is_forked_child = false;

// LeakSanitizer asks; it takes what the parent's other threads owned for leaks in a child.
extern "C" __attribute__((visibility("default"))) int __lsan_is_turned_off();
int __lsan_is_turned_off() { return is_forked_child ? 1 : 0; }

namespace torchnpy::testing {

int run_in_child(const std::function<int()>& run) {
  const pid_t child = fork();
  if (child == 0) {
    is_forked_child = true;
    alarm(60);  // a child that hangs is a failure
    _exit(run());
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

}  // namespace torchnpy::testing
