// NPZ: ZIP archives of .npy members, opened and read over any Source.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "archive/loader.h"
#include "format/zip.h"

namespace torchnpy {

// An opened archive: its directory, and where its bytes are. Members are known by key: a name
// without its ".npy", unless another member has that very name. Any number of threads may use it
// at once; it changes in nothing but what it remembers to have verified.
class NpzArchive {
 public:
  // The last bytes of the object as they were read; or all of it, when the source offers a view.
  struct Tail {
    uint64_t offset = 0;
    OwnedBytes content;
    bool is_view = false;
  };

  NpzArchive(std::shared_ptr<Source> source, std::vector<ZipMember> members, ZipLimits limits,
             Tail tail);

  Source& source() const { return *source_; }
  const std::shared_ptr<Source>& shared_source() const { return source_; }
  const std::vector<ZipMember>& members() const { return members_; }
  const ZipLimits& limits() const { return limits_; }
  const Tail& tail() const { return tail_; }

  // The key of a member.
  std::string_view key(size_t member) const;
  // Of all, in the archive's order.
  std::vector<std::string> keys() const;
  // Where in members() the key "x" or the name "x.npy" leads to; a member's own name comes before
  // the one that ".npy" is added to, as in numpy.
  std::optional<size_t> find(std::string_view key) const;
  // The same; throws KeyError, which names the archive's members.
  size_t at(std::string_view key) const;

  // True when the member's bytes are here: its header takes no request.
  bool is_local(size_t member) const;

  bool is_verified(size_t member) const { return verified_[member].load(); }
  void set_verified(size_t member) const { verified_[member].store(true); }

 private:
  const std::shared_ptr<Source> source_;
  const std::vector<ZipMember> members_;
  const ZipLimits limits_;
  const Tail tail_;
  const ZipIndex index_;
  mutable std::vector<std::atomic<bool>> verified_;
};

// A member that was read.
struct NpzEntry {
  size_t member = 0;                // in NpzArchive::members()
  std::optional<NpyHeader> header;  // empty: it is no array
  OwnedBytes data;                  // of the array, as stored; else the member's bytes
  bool is_view = false;             // data shares the source's memory
};

struct NpzLoadOptions {
  std::optional<std::vector<std::string>> keys;  // empty optional: all; no keys: only open
  bool header_only = false;                      // data stays empty
  bool as_bytes = false;                         // no member is an array
  bool verify = true;                            // check the CRC-32 of what was not checked before
  bool allow_void = false;  // the caller will say what the bits of void dtypes are
  ZipLimits limits;
  // Called with each entry as soon as it is there, on the thread that decoded it; may move its data
  // elsewhere, and ask the workers, if there are any. Not with header_only.
  std::function<void(NpzEntry&, Workers*)> decoded;
};

// Opens an archive, unless it is open, and reads members of it: the object's last 64 KiB -> the
// directory -> the members asked for, near ones in one read -> inflated by the CPU workers while
// others still arrive. Stored members of a source that offers a view are views.
class NpzLoader final : public Loader {
 public:
  // `allocator` must outlive the loader.
  NpzLoader(std::shared_ptr<Source> source, Allocator& allocator, NpzLoadOptions options);
  // Reads on in an open archive; options.limits are the archive's. Fails when the object is no
  // longer the one that was opened.
  NpzLoader(std::shared_ptr<const NpzArchive> archive, Allocator& allocator,
            NpzLoadOptions options);
  ~NpzLoader() override;
  Source& source() override;
  void attach(Workers& workers) override;
  std::vector<Read> next() override;
  bool restart() override;

  // When done: the archive, the entries, and which of them each of options.keys is (two keys may
  // lead to one member), or each member in the archive's order.
  const std::shared_ptr<const NpzArchive>& archive() const;
  std::vector<NpzEntry>& entries();
  const std::vector<size_t>& places() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace torchnpy
