// Where bytes come from, and where the bytes of a read go.
#pragma once

#include <cstdint>
#include <exception>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "base/bytes.h"
#include "base/checksum.h"

namespace torchnpy {

// Bytes [offset, offset + nbytes) of an object; or its last `nbytes` (from_end).
struct Range {
  static constexpr uint64_t kToEnd = std::numeric_limits<uint64_t>::max();
  uint64_t offset = 0;
  uint64_t nbytes = kToEnd;
  bool from_end = false;  // then offset is 0
};

// How a source would have its object read.
struct ReadSizes {
  // The first read, which shows how much there is.
  uint64_t first_nbytes = 64 << 10;
  // Longer stretches are read in parts of so many, side by side.
  uint64_t part_nbytes = 8 << 20;
  // Stretches with so many bytes between them are read as one, or more.
  uint64_t coalesce_nbytes = 0;
};

// Where the bytes of one read go. Called on an I/O thread, in order, never concurrently
// for one read; must be cheap. What room() or filled() throws ends the read and comes
// back through done().
class Sink {
 public:
  virtual ~Sink() = default;
  // Memory for the next bytes, which belong at `offset` of the object; shorter than `want`
  // is fine: it is asked again for the rest. Empty: no more bytes are wanted, and the read
  // ends without an error.
  virtual MutableBytes room(uint64_t offset, size_t want) = 0;
  // `nbytes` were written to the start of the last room(). A read that is tried again goes
  // on after the last byte filled: no byte is filled twice, unless restart() came between.
  virtual void filled(uint64_t offset, size_t nbytes) = 0;
  // True where Source::view() of the whole object would do as well. A read may then end without
  // bytes and without having asked for room(), once view() is offered.
  virtual bool prefers_view() const { return false; }
  // The object changed while it was read and what was filled is void: the read begins
  // again at its first byte. False: cannot, and the read ends with an error.
  virtual bool restart() { return false; }
  // Exactly once, and nothing after it: the sink may be destroyed inside. Fewer bytes than
  // asked for without an error only where the object ends.
  virtual void done(std::exception_ptr error) = 0;
};

// A read-only object: file, HTTP resource, S3 object. All calls may come from several
// threads at once. Shared ownership: reads in flight keep the source alive.
class Source {
 public:
  virtual ~Source() = default;
  // For messages: the URL without its query and without credentials, or the path.
  virtual const std::string& name() const = 0;
  // Bytes in the object; empty until it is known (for a remote object: until a first
  // answer has arrived).
  virtual std::optional<uint64_t> nbytes() const = 0;
  // For a stretch of `wanted_nbytes`; 0 where that is not known yet.
  virtual ReadSizes read_sizes(uint64_t wanted_nbytes) const {
    static_cast<void>(wanted_nbytes);
    return {};
  }
  // Bytes that need no copying, with their owner; empty when they must be read. The range
  // lies inside the object. Writes to them never reach the object.
  virtual std::optional<OwnedBytes> view(uint64_t offset, uint64_t nbytes) = 0;
  // The same for bytes that are copied at once and then let go; also of a file that view() does not
  // map because others may truncate it: one that was truncated by now gives none.
  virtual std::optional<OwnedBytes> peek(uint64_t offset, uint64_t nbytes) {
    return view(offset, nbytes);
  }
  // All of these will be read, or peeked at, soon: a hint, for sources that can fetch them side by
  // side meanwhile.
  virtual void will_read(std::span<const Range> ranges) { static_cast<void>(ranges); }
  // Sends the range to the sink, which must live until its done(). Returns at once for a
  // remote object; a local one may call done() before start() returns. Where a server
  // ignores ranges and sends the whole object, a read goes on past the end of its range
  // for as long as the sink gives room, and a read from the end begins at byte 0.
  virtual void start(Range range, Sink& sink) = 0;
  // Asks the reads into `sink` to end; done() still comes, with InterruptedError unless the
  // read had ended by itself. No effect after done(). Wakes the I/O thread, never waits.
  virtual void cancel(Sink& sink) = 0;
  // Forgets which version of the object the reads so far were of, so that the next may find
  // another. No read may be in flight.
  virtual void forget() {}
  // Names the version of the object that the reads so far were of, for expect_version(), also in
  // another process; empty before the first answer, and where versions have no names.
  virtual std::string version_name() const { return {}; }
  // Reads are of that version or fail with kChanged. Before the first read.
  virtual void expect_version(const std::string& version_name) { static_cast<void>(version_name); }

  // Whether reads of the whole object (Range{}) ask for the checksum that the store keeps of it.
  virtual bool asks_checksum() const { return false; }
  // The store's checksum of all of the object's bytes, known before the first byte is filled where
  // one was sent. Not compared here: who reads does that.
  virtual std::optional<Checksum> checksum() const { return std::nullopt; }
  // Forgets as forget(), and counts it: what was read does not match the checksum, and is read
  // again.
  virtual void discard() { forget(); }
};

}  // namespace torchnpy
