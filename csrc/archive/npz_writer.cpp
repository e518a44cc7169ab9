#include "archive/npz_writer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#include "archive/array_bytes.h"
#include "archive/ordered_jobs.h"
#include "base/checksum.h"
#include "base/error.h"
#include "format/deflate.h"
#include "format/npy.h"
#include "format/text.h"
#include "format/zip_write.h"

namespace torchnpy {
namespace {

// Of what is given to the threads and not yet written. With blocks of 1 MiB eight threads find
// enough, and a target may stall for a while.
constexpr uint64_t kWindowNbytes = 32 << 20;
// A member up to this is held until all of it is there, so that its local header tells its sizes.
constexpr uint64_t kMaxHeldNbytes = 8 << 20;
// Of stored members, whose threads copy and take checksums.
constexpr uint64_t kStoredBlockNbytes = 4 << 20;
// What a member takes besides its data, roughly.
constexpr uint64_t kMemberNbytes = 1 << 10;

// How a member gets into the archive.
enum class Way {
  // Its checksum is taken, then it is written from where it lies.
  kInPlace,
  // Its blocks are made, then the header and they are written.
  kHeld,
  // Its blocks are made twice: for the checksum, and to be written. What is stored has its sizes in
  // its header always: readers of streams could not tell where it ends.
  kTwice,
  // Its blocks are written as they come, and then a descriptor: how large a stream will be, and its
  // checksum, is only known at its end.
  kStreamed,
};

// A .npy: its header, and the array's data.
class Npy {
 public:
  explicit Npy(ArrayView array)
      : array_(std::move(array)),
        header_(
            format_npy_header(array_.array().descr, array_.fortran_order(), array_.array().shape)),
        whole_(array_.whole()) {
    if (!checked_add(header_.size(), array_.nbytes(), &nbytes_)) {
      throw ArgumentError("expected an array that fits into memory but found a larger one");
    }
  }

  uint64_t nbytes() const { return nbytes_; }
  std::string_view header() const { return header_; }
  // The data, where it lies as a file holds it.
  const std::optional<SharedBytes>& whole() const { return whole_; }

  // The bytes there, without a copy where they lie together.
  std::optional<ByteView> view(uint64_t offset, uint64_t nbytes) const {
    if (offset >= header_.size()) {
      if (!whole_) return std::nullopt;
      return whole_->bytes.subspan(offset - header_.size(), nbytes);
    }
    if (nbytes > header_.size() - offset) return std::nullopt;
    return as_bytes(header_).subspan(offset, nbytes);
  }

  void copy(uint64_t offset, MutableBytes out) const {
    const ByteView header = as_bytes(header_).subspan(std::min<uint64_t>(offset, header_.size()));
    const size_t header_nbytes = std::min(header.size(), out.size());
    if (header_nbytes != 0) std::memcpy(out.data(), header.data(), header_nbytes);
    out = out.subspan(header_nbytes);
    if (!out.empty()) array_.copy(offset + header_nbytes - header_.size(), out);
  }

 private:
  ArrayBytes array_;
  std::string header_;
  std::optional<SharedBytes> whole_;
  uint64_t nbytes_ = 0;
};

struct Member {
  ZipMember zip;
  Npy npy;
  Way way;
  int level;  // 0: stored
};

enum class JobKind { kChecksum, kCopy, kDeflate };

// A part of a member.
class Block final : public OrderedJobs::Job {
 public:
  Block(std::shared_ptr<Member> of, JobKind what, uint64_t begin, uint64_t count)
      : member(std::move(of)), task(what), offset(begin), nbytes(count) {}

  bool is_first() const { return offset == 0; }
  bool is_last() const { return nbytes == member->npy.nbytes() - offset; }
  // Whether it is part of the member's checksum and size, or is there again to be written.
  bool counts() const { return member->way != Way::kTwice || task == JobKind::kChecksum; }
  // That it holds at most, once it has run.
  uint64_t memory_nbytes() const {
    const uint64_t overhead = is_first() ? kMemberNbytes : 0;
    return task == JobKind::kChecksum ? overhead : overhead + deflate_bound(nbytes);
  }
  uint64_t cost_ns() const {
    if (task == JobKind::kDeflate) return 4 * nbytes;
    return member->npy.whole() ? nbytes / 10 : nbytes;
  }

  void run() override {
    OwnedBytes copy;
    std::optional<ByteView> bytes = member->npy.view(offset, nbytes);
    if (!bytes) {
      copy = allocate_bytes(nbytes);
      member->npy.copy(offset, copy.bytes);
      bytes = copy.bytes;
    }
    if (counts()) checksum = crc32(*bytes);
    if (task == JobKind::kCopy) {
      outcome = {*bytes, copy.owner};
    } else if (task == JobKind::kDeflate) {
      // The target may hold many: no more memory than each needs.
      const OwnedBytes room = allocate_bytes(deflate_bound(nbytes));
      const size_t filled = deflate_block(*bytes, is_last(), member->level, room.bytes);
      const OwnedBytes stream = allocate_bytes(filled);
      std::memcpy(stream.bytes.data(), room.bytes.data(), filled);
      outcome = {stream.bytes, stream.owner};
    }
  }

  const std::shared_ptr<Member> member;
  const JobKind task;
  const uint64_t offset;  // in the .npy
  const uint64_t nbytes;
  SharedBytes outcome;
  uint32_t checksum = 0;
};

// Joins what is small to writes that are worth a call.
class Output {
 public:
  explicit Output(Target& target) : target_(target) { buffer_.reserve(kBufferNbytes); }

  uint64_t offset() const { return offset_; }

  void write(ByteView bytes) {
    if (bytes.size() > kBufferNbytes - buffer_.size()) flush();
    if (bytes.size() > kBufferNbytes) return write_through({bytes, nullptr});
    buffer_.insert(buffer_.end(), bytes.begin(), bytes.end());
    offset_ += bytes.size();
  }
  void write(std::string_view text) { write(as_bytes(text)); }

  void write(const SharedBytes& bytes) {
    if (bytes.bytes.size() < kWorthCopy_nbytes) return write(bytes.bytes);
    flush();
    write_through(bytes);
  }

  void flush() {
    if (!buffer_.empty()) target_.write({buffer_, nullptr});
    buffer_.clear();
  }

 private:
  static constexpr size_t kBufferNbytes = 256 << 10;
  static constexpr size_t kWorthCopy_nbytes = 32 << 10;

  void write_through(const SharedBytes& bytes) {
    target_.write(bytes);
    offset_ += bytes.bytes.size();
  }

  Target& target_;
  std::vector<uint8_t> buffer_;
  uint64_t offset_ = 0;
};

Npy make_npy(std::string_view name, ArrayView array) {
  try {
    return Npy(std::move(array));
  } catch (Error& error) {
    error.add_member(name);
    throw;
  }
}

void check_name(std::string_view name, std::string_view file_name) {
  std::string_view wrong;
  if (name.empty()) {
    wrong = "a name that is not empty";
  } else if (name.find('\0') != std::string_view::npos) {
    wrong = "a name without NUL";
  } else if (find_invalid_utf8(name) != std::string_view::npos) {
    wrong = "a name in UTF-8";
  } else if (file_name.size() > kMaxZipNameNbytes) {
    throw ArgumentError(fmt::format(
        "expected a name of at most {} bytes but found one of {}; shorten {}",
        kMaxZipNameNbytes - (file_name.size() - name.size()), name.size(), format_name(name)));
  }
  if (wrong.empty()) return;
  throw ArgumentError(
      fmt::format("expected {} but found {}; give the array another", wrong, format_snippet(name)));
}

}  // namespace

class NpzWriter::State {
 public:
  State(Target& target, NpzWriterOptions options)
      : target_(target), options_(options), output_(target), jobs_(options.threads) {
    if (options.level < 0 || options.level > kMaxDeflateLevel) {
      throw ArgumentError(fmt::format("level: expected 0 to {} but found {}; the default is {}",
                                      kMaxDeflateLevel, options.level, kDefaultDeflateLevel));
    }
  }

  void add(std::string_view name, ArrayView array) {
    std::shared_ptr<Member> member;
    try {
      member = make_member(name, std::move(array));
    } catch (Error& error) {
      error.add_context(target_.name());
      throw;
    }
    const uint64_t nbytes = member->npy.nbytes();
    if (member->way == Way::kInPlace || member->way == Way::kTwice) {
      push_blocks(member, JobKind::kChecksum, nbytes);
    }
    if (member->way != Way::kInPlace) {
      push_blocks(member, options_.level == 0 ? JobKind::kCopy : JobKind::kDeflate, nbytes);
    }
  }

  void finish() {
    while (!jobs_.is_empty()) take_oldest();
    ZipEnd end;
    end.directory_offset = output_.offset();
    end.member_count = members_.size();
    for (const ZipMember& member : members_) output_.write(format_zip_entry(member));
    end.directory_nbytes = output_.offset() - end.directory_offset;
    output_.write(format_zip_end(end));
    output_.flush();
    target_.finish();
  }

 private:
  std::shared_ptr<Member> make_member(std::string_view name, ArrayView array) {
    std::string file_name = fmt::format("{}.npy", name);
    check_name(name, file_name);
    if (!names_.insert(file_name).second) {
      throw ArgumentError(fmt::format("expected names that differ but found {} twice; rename one",
                                      format_name(name)));
    }
    Npy npy = make_npy(name, std::move(array));
    ZipMember zip;
    zip.name = std::move(file_name);
    zip.nbytes = npy.nbytes();
    Way way = npy.nbytes() <= kMaxHeldNbytes ? Way::kHeld : Way::kTwice;
    if (options_.level != 0) {
      zip.method = kZipDeflated;
      if (way == Way::kTwice) way = Way::kStreamed;
    } else if (npy.whole()) {
      way = Way::kInPlace;
    }
    if (way == Way::kStreamed) zip.flags = kZipHasDescriptor;
    return std::make_shared<Member>(std::move(zip), std::move(npy), way, options_.level);
  }

  void push_blocks(const std::shared_ptr<Member>& member, JobKind task, uint64_t nbytes) {
    const uint64_t block_nbytes =
        task == JobKind::kDeflate ? deflate_block_nbytes(options_.level) : kStoredBlockNbytes;
    for (uint64_t offset = 0; offset < nbytes; offset += block_nbytes) {
      auto block =
          std::make_unique<Block>(member, task, offset, std::min(block_nbytes, nbytes - offset));
      in_flight_nbytes_ += block->memory_nbytes();
      const uint64_t cost_ns = block->cost_ns();
      jobs_.push(std::move(block), cost_ns);
      while (in_flight_nbytes_ > kWindowNbytes || jobs_.is_oldest_done()) take_oldest();
    }
  }

  // Writes what it allows to be written.
  void take_oldest() {
    std::unique_ptr<OrderedJobs::Job> job = jobs_.pop();
    std::unique_ptr<Block> block(static_cast<Block*>(job.release()));
    const std::shared_ptr<Member> member = block->member;
    const bool is_first = block->is_first();
    const bool is_last = block->is_last();
    in_flight_nbytes_ -= block->memory_nbytes();
    count(*block);
    switch (member->way) {
      case Way::kInPlace:
        if (is_last) write_in_place(*member);
        break;
      case Way::kHeld:
        held_.push_back(std::move(block->outcome));
        if (is_last) write_held(*member);
        break;
      case Way::kTwice:
        if (block->task == JobKind::kCopy) {
          output_.write(block->outcome);
          if (is_last) members_.push_back(std::move(member->zip));
        } else if (is_last) {
          write_header(*member);
        }
        break;
      case Way::kStreamed:
        if (is_first) write_header(*member);
        output_.write(block->outcome);
        if (is_last) {
          output_.write(format_zip_descriptor(member->zip));
          members_.push_back(std::move(member->zip));
        }
        break;
    }
  }

  static void count(const Block& block) {
    if (!block.counts()) return;
    ZipMember& zip = block.member->zip;
    zip.crc32 = block.is_first()
                    ? block.checksum
                    : static_cast<uint32_t>(combine_crcs(ChecksumKind::kCrc32, zip.crc32,
                                                         block.checksum, block.nbytes));
    zip.compressed_nbytes +=
        block.task == JobKind::kDeflate ? block.outcome.bytes.size() : block.nbytes;
  }

  void write_header(Member& member) {
    member.zip.local_offset = output_.offset();
    // A stored array begins where it can be used as it lies.
    output_.write(format_zip_local_header(member.zip, member.level == 0 ? kDataAlignment : 1));
  }

  void write_in_place(Member& member) {
    write_header(member);
    output_.write(member.npy.header());
    output_.write(*member.npy.whole());
    members_.push_back(std::move(member.zip));
  }

  void write_held(Member& member) {
    write_header(member);
    for (const SharedBytes& bytes : held_) output_.write(bytes);
    held_.clear();
    members_.push_back(std::move(member.zip));
  }

  Target& target_;
  const NpzWriterOptions options_;
  Output output_;
  std::unordered_set<std::string> names_;
  std::vector<ZipMember> members_;  // that were written
  std::vector<SharedBytes> held_;   // of the member that is being taken
  uint64_t in_flight_nbytes_ = 0;
  OrderedJobs jobs_;
};

NpzWriter::NpzWriter(Target& target, NpzWriterOptions options)
    : state_(std::make_unique<State>(target, options)) {}

NpzWriter::~NpzWriter() = default;

void NpzWriter::add(std::string_view name, ArrayView array) { state_->add(name, std::move(array)); }

void NpzWriter::finish() { state_->finish(); }

}  // namespace torchnpy
