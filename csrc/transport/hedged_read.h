// A read with a second request for the slow tail: the one that answers first counts.
#pragma once

#include <exception>
#include <memory>
#include <mutex>

#include "transport/engine.h"
#include "transport/http_source.h"
#include "transport/source.h"

namespace torchnpy {

class HedgedRead : public std::enable_shared_from_this<HedgedRead> {
 public:
  // As HttpSource::start(). Throws as submit_job(), without done().
  static void start(std::shared_ptr<HttpSource> source, Range range, Sink& sink);

  HedgedRead(std::shared_ptr<HttpSource> source, Range range, Sink& sink);
  // The first request has no answer yet and is late. On an I/O thread.
  void begin_second();

 private:
  // Where one of the two reads sends its bytes: on to the sink for the first that has any.
  class Arm final : public Sink {
   public:
    explicit Arm(HedgedRead& read) : read_(read) {}
    MutableBytes room(uint64_t offset, size_t want) override;
    void filled(uint64_t offset, size_t nbytes) override;
    bool restart() override;
    void done(std::exception_ptr error) override;
    const Job* job = nullptr;

   private:
    HedgedRead& read_;
  };

  void submit(Arm& arm, bool urgent);
  bool win(Arm& arm);

  const std::shared_ptr<HttpSource> source_;
  const Range range_;
  Sink& sink_;
  const Job::Clock::time_point started_ = Job::Clock::now();
  Arm first_;
  Arm second_;
  std::mutex mutex_;
  // Under it:
  int running_ = 0;
  bool has_second_ = false;
  Arm* winner_ = nullptr;
  std::exception_ptr error_;  // of the arm that failed first
};

}  // namespace torchnpy
