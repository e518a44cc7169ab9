#include "transport/cached_source.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <mutex>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/fork.h"
#include "base/text.h"
#include "transport/http_head.h"
#include "transport/http_source.h"
#include "transport/sigv4.h"

namespace torchnpy {
namespace {

// A Last-Modified of no more than so long ago does not tell a version from the next, which may come
// within the same second (RFC 9110, 8.8.2.2).
constexpr int64_t kMinAge_s = 2;

// Empty for a version that could be taken for another.
std::optional<CacheVersion> make_cache_version(const Version& version) {
  if (!version.nbytes || *version.nbytes == 0) return std::nullopt;
  CacheVersion result{*version.nbytes, version.etag, version.modified};
  if (result.etag.size() + result.modified.size() > kMaxValidatorNbytes) return std::nullopt;
  if (result.has_strong_etag()) return result;
  const std::optional<int64_t> modified_s = parse_http_date(result.modified);
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  const int64_t now_s = std::chrono::duration_cast<std::chrono::seconds>(now).count();
  if (!modified_s || *modified_s > now_s - kMinAge_s) return std::nullopt;
  return result;
}

// Of all that the answer may depend on, but who asks: tokens change, objects do not.
CacheKey make_key(const HttpObject& object, const ClientOptions& options) {
  std::string text = object.cache_key();
  for (const auto& [name, value] : options.headers) {
    const std::string key = lower(name);
    if (key == "authorization" || key == "cookie" || key == "x-amz-security-token") continue;
    text += fmt::format("\n{}: {}", key, value);
  }
  return sha256(text);
}

bool says_changed(const std::exception_ptr& error) {
  try {
    if (error) std::rethrow_exception(error);
  } catch (const TransportError& e) {
    return e.kind() == TransportError::Kind::kChanged;
  } catch (...) {
  }
  return false;
}

class CachedSource final : public Source, public std::enable_shared_from_this<CachedSource> {
 public:
  CachedSource(std::shared_ptr<HttpSource> source, std::shared_ptr<Cache> cache,
               const CacheKey& key, bool offers_views)
      : source_(std::move(source)),
        cache_(std::move(cache)),
        key_(key),
        offers_views_(offers_views) {}

  const std::string& name() const override { return source_->name(); }
  std::optional<uint64_t> nbytes() const override;
  std::optional<OwnedBytes> view(uint64_t offset, uint64_t nbytes) override;
  void start(Range range, Sink& sink) override;
  void cancel(Sink& sink) override;
  void forget() override;
  std::string version_name() const override;
  void expect_version(const std::string& version_name) override;
  ReadSizes read_sizes(uint64_t wanted_nbytes) const override {
    return source_->read_sizes(wanted_nbytes);
  }
  // What the cache has was compared when it came.
  bool asks_checksum() const override { return source_->asks_checksum() && !trusted(); }
  std::optional<Checksum> checksum() const override { return source_->checksum(); }
  void discard() override;

 private:
  class Tee;
  using Known = std::shared_ptr<const CacheVersion>;

  void look_up() const;
  Known trusted() const;
  bool serve(const CacheVersion& version, Range range, Sink& sink);
  void fetch(Range range, Sink& sink);
  void serve_unchanged(Range range, Sink& sink);
  std::optional<CacheWriter> begin_writing(uint64_t offset);
  void drop_known();
  void remove(Tee& tee);

  const std::shared_ptr<HttpSource> source_;
  const std::shared_ptr<Cache> cache_;
  const CacheKey key_;
  const bool offers_views_;
  // All that follows is under process_mutex().
  mutable bool looked_up_ = false;
  mutable Known known_;              // what the cache has
  mutable bool is_trusted_ = false;  // it is the version that the source is pinned to
  OwnedBytes whole_;                 // for the loader that is to ask for it
  std::vector<Tee*> tees_;
};

// Stands between a sink and the store: what passes goes to the cache, too. Owns itself.
class CachedSource::Tee final : public Sink {
 public:
  Tee(std::shared_ptr<CachedSource> source, Range range, Sink& sink)
      : source_(std::move(source)), range_(range), sink_(sink) {}

  MutableBytes room(uint64_t offset, size_t want) override {
    has_answer_ = true;
    return room_ = sink_.room(offset, want);
  }

  void filled(uint64_t offset, size_t nbytes) override {
    if (!std::exchange(has_begun_, true)) writer_ = source_->begin_writing(offset);
    // Before the sink has it: it may be changed in place there.
    if (writer_) writer_->write(room_.first(nbytes));
    sink_.filled(offset, nbytes);
  }

  bool restart() override {
    if (!sink_.restart()) return false;
    writer_.reset();
    has_begun_ = false;
    return true;
  }

  bool prefers_view() const override { return sink_.prefers_view(); }

  void done(std::exception_ptr error) override {
    const std::unique_ptr<Tee> self(this);
    source_->remove(*this);
    if (writer_ && !error) writer_->commit();
    writer_.reset();
    if (says_changed(error)) source_->drop_known();
    if (!error && !has_answer_ && source_->source_->is_unchanged()) {
      return source_->serve_unchanged(range_, sink_);
    }
    source_->source_->metrics().cache_misses.fetch_add(1, std::memory_order_relaxed);
    sink_.done(std::move(error));
  }

  bool is_of(const Sink& sink) const { return &sink_ == &sink; }

 private:
  const std::shared_ptr<CachedSource> source_;
  const Range range_;
  Sink& sink_;
  MutableBytes room_;
  bool has_answer_ = false;  // bytes came
  bool has_begun_ = false;
  std::optional<CacheWriter> writer_;
};

// Finds out what the cache has, once.
void CachedSource::look_up() const {
  {
    const std::lock_guard lock(process_mutex());
    if (looked_up_) return;
  }
  const std::optional<Cache::Known> found = cache_->find(key_);
  bool is_offered = false;
  Known known;
  if (found) {
    known = std::make_shared<const CacheVersion>(found->version);
    const Version version{known->nbytes, known->etag, known->modified};
    // Another thread may have been faster, and with another version.
    is_offered = source_->offer(std::make_shared<const Version>(version), found->is_fresh);
  }
  const std::lock_guard lock(process_mutex());
  looked_up_ = true;
  if (!is_offered) return;
  known_ = std::move(known);
  is_trusted_ = found->is_fresh;
}

CachedSource::Known CachedSource::trusted() const {
  look_up();
  const std::lock_guard lock(process_mutex());
  return is_trusted_ ? known_ : nullptr;
}

std::optional<uint64_t> CachedSource::nbytes() const {
  const Known version = trusted();
  return version ? version->nbytes : source_->nbytes();
}

std::optional<OwnedBytes> CachedSource::view(uint64_t offset, uint64_t nbytes) {
  const Known version = trusted();
  if (!version || !offers_views_) return std::nullopt;
  std::optional<OwnedBytes> bytes;
  {
    const std::lock_guard lock(process_mutex());
    if (whole_.owner) bytes = OwnedBytes{whole_.bytes.subspan(offset, nbytes), whole_.owner};
  }
  if (!bytes) bytes = cache_->view(key_, *version, offset, offset + nbytes);
  if (bytes) source_->metrics().cache_hits.fetch_add(1, std::memory_order_relaxed);
  return bytes;
}

void CachedSource::start(Range range, Sink& sink) {
  const Known version = trusted();
  if (version && serve(*version, range, sink)) return;
  fetch(range, sink);
}

void CachedSource::fetch(Range range, Sink& sink) {
  Tee* tee = nullptr;
  try {
    auto made = std::make_unique<Tee>(shared_from_this(), range, sink);
    const std::lock_guard lock(process_mutex());
    tees_.push_back(made.get());
    tee = made.release();
  } catch (...) {
    return sink.done(std::current_exception());
  }
  source_->start(range, *tee);
}

void CachedSource::remove(Tee& tee) {
  const std::lock_guard lock(process_mutex());
  std::erase(tees_, &tee);
}

// Takes the range from the cache. False when it is not all there; then nothing was done.
bool CachedSource::serve(const CacheVersion& version, Range range, Sink& sink) {
  const uint64_t begin = range.from_end ? version.nbytes - std::min(range.nbytes, version.nbytes)
                                        : std::min(range.offset, version.nbytes);
  const uint64_t end = begin + std::min(range.nbytes, version.nbytes - begin);
  if (begin == end) {
    sink.done(nullptr);
    return true;
  }
  const std::optional<CachedBytes> bytes = cache_->open(key_, version, begin, end);
  if (!bytes) return false;
  source_->metrics().cache_hits.fetch_add(1, std::memory_order_relaxed);
  std::exception_ptr error;
  try {
    for (uint64_t offset = begin; offset < end;) {
      MutableBytes room = sink.room(offset, end - offset);
      if (room.empty()) break;
      room = room.first(std::min<uint64_t>(room.size(), end - offset));
      if (bytes->read(offset, room) != room.size()) {  // the disk fails
        drop_known();
        fetch({offset, end - offset}, sink);
        return true;
      }
      sink.filled(offset, room.size());
      offset += room.size();
    }
  } catch (...) {
    error = std::current_exception();
  }
  sink.done(std::move(error));
  return true;
}

// The store has answered 304.
void CachedSource::serve_unchanged(Range range, Sink& sink) {
  Known version;
  {
    const std::lock_guard lock(process_mutex());
    is_trusted_ = known_ != nullptr;
    version = known_;
  }
  if (version) {
    cache_->renew(key_, *version);
    if (offers_views_ && sink.prefers_view()) {
      if (auto whole = cache_->view(key_, *version, 0, version->nbytes)) {
        {
          const std::lock_guard lock(process_mutex());
          whole_ = std::move(*whole);
        }
        return sink.done(nullptr);
      }
    }
    if (serve(*version, range, sink)) return;
  }
  fetch(range, sink);  // it was evicted; asked for by If-Match now
}

std::optional<CacheWriter> CachedSource::begin_writing(uint64_t offset) {
  const std::shared_ptr<const Version> pinned = source_->version();
  const std::optional<CacheVersion> version = pinned ? make_cache_version(*pinned) : std::nullopt;
  Known known;
  {
    const std::lock_guard lock(process_mutex());
    known = known_;
  }
  if (known && !(version && *version == *known)) drop_known();
  return version ? cache_->write(key_, *version, offset) : std::nullopt;
}

// The store has another version by now, or the bytes cannot be read.
void CachedSource::drop_known() {
  Known known;
  {
    const std::lock_guard lock(process_mutex());
    known = known_;
    if (!is_trusted_) known_ = nullptr;
  }
  if (known) cache_->drop(key_, *known);
}

void CachedSource::cancel(Sink& sink) {
  // Under the lock: or the tee could end here, and another read get its address. The engine takes
  // its own lock inside, and never this one inside its own.
  const std::lock_guard lock(process_mutex());
  const auto found = std::ranges::find_if(tees_, [&](const Tee* t) { return t->is_of(sink); });
  if (found != tees_.end()) source_->cancel(**found);
}

void CachedSource::discard() {
  const std::shared_ptr<const Version> pinned = source_->version();
  const auto version = pinned ? make_cache_version(*pinned) : std::nullopt;
  if (version) cache_->drop(key_, *version);
  source_->discard();
  forget();
}

std::string CachedSource::version_name() const {
  const Known version = trusted();
  if (!version) return source_->version_name();
  return Version{version->nbytes, version->etag, version->modified}.format();
}

void CachedSource::expect_version(const std::string& version_name) {
  look_up();
  source_->expect_version(version_name);
  const std::lock_guard lock(process_mutex());
  is_trusted_ =
      known_ && Version{known_->nbytes, known_->etag, known_->modified}.format() == version_name;
  if (!is_trusted_) known_ = nullptr;
}

void CachedSource::forget() {
  source_->forget();
  drop_known();
  OwnedBytes whole;  // freed without the lock
  const std::lock_guard lock(process_mutex());
  known_ = nullptr;
  is_trusted_ = false;
  std::swap(whole, whole_);
}

}  // namespace

std::shared_ptr<Source> open_cached(std::shared_ptr<HttpObject> object,
                                    std::shared_ptr<HttpContext> context,
                                    std::shared_ptr<Cache> cache, bool offers_views) {
  if (object->cache_key().empty()) return open_http(std::move(object), std::move(context));
  const CacheKey key = make_key(*object, *context->options);
  // All that open_http() gives are of this class.
  auto source =
      std::static_pointer_cast<HttpSource>(open_http(std::move(object), std::move(context)));
  return std::make_shared<CachedSource>(std::move(source), std::move(cache), key, offers_views);
}

}  // namespace torchnpy
