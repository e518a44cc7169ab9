#include "archive/npz.h"

#include <fmt/format.h>

#include <algorithm>
#include <deque>
#include <unordered_map>
#include <utility>

#include "archive/npz_member.h"
#include "archive/npz_opening.h"
#include "archive/parts.h"
#include "archive/runs.h"
#include "base/error.h"
#include "format/text.h"

namespace torchnpy {
namespace {

// Less is done at once, where it comes up: to give it away takes as long.
constexpr uint64_t kWorthGiving_ns = 20'000;
// What a call of next() does at once in all: it cannot be interrupted.
constexpr uint64_t kMaxAtOnce_ns = 1'000'000;
// Of small work: what goes with it.
constexpr uint64_t kOverhead_ns = 500;
constexpr size_t kMaxShownNbytes = 200;

constexpr std::string_view kSuffix = ".npy";

// Calls `work`; its errors name the member.
template <typename Work>
auto name_errors(const ZipMember& member, Work work) {
  try {
    return work();
  } catch (Error& error) {
    error.add_member(format_name(member.name));
    throw;
  }
}

}  // namespace

NpzArchive::NpzArchive(std::shared_ptr<Source> source, std::vector<ZipMember> members,
                       ZipLimits limits, Tail tail)
    : source_(std::move(source)),
      members_(std::move(members)),
      limits_(limits),
      tail_(std::move(tail)),
      index_(members_),
      verified_(members_.size()) {}

std::string_view NpzArchive::key(size_t member) const {
  const std::string_view name = members_[member].name;
  if (!name.ends_with(kSuffix)) return name;
  const std::string_view stem = name.substr(0, name.size() - kSuffix.size());
  return index_.find(stem) ? name : stem;
}

std::vector<std::string> NpzArchive::keys() const {
  std::vector<std::string> keys;
  keys.reserve(members_.size());
  for (size_t i = 0; i < members_.size(); ++i) keys.emplace_back(key(i));
  return keys;
}

std::optional<size_t> NpzArchive::find(std::string_view key) const {
  const std::optional<size_t> found = index_.find(key);
  return found ? found : index_.find(std::string(key).append(kSuffix));
}

size_t NpzArchive::at(std::string_view key) const {
  if (const std::optional<size_t> found = find(key)) return *found;
  std::string names;
  for (size_t i = 0; i < members_.size(); ++i) {
    if (!names.empty()) names += ", ";
    if (names.size() > kMaxShownNbytes) {
      names += "...";
      break;
    }
    names += format_name(this->key(i));
  }
  throw KeyError(fmt::format("expected one of its {} members ({}) but found '{}'", members_.size(),
                             names, format_name(key)));
}

bool NpzArchive::is_local(size_t member) const {
  return tail_.is_view ||
         (!tail_.content.bytes.empty() && members_[member].local_offset >= tail_.offset);
}

struct NpzLoader::State {
  State(std::shared_ptr<Source> source_in, std::shared_ptr<const NpzArchive> archive_in,
        Allocator& allocator_in, NpzLoadOptions options_in)
      : source(std::move(source_in)),
        given_archive(std::move(archive_in)),
        allocator(allocator_in),
        options(std::move(options_in)) {
    begin();
  }

  // Fills the members that lie in one read, one after the other.
  class SpanSink final : public Sink {
   public:
    SpanSink(State& state, std::span<const Stretch> stretches)
        : state_(state), stretches_(stretches.begin(), stretches.end()) {}

    MutableBytes room(uint64_t offset, size_t want) override {
      const Stretch* const stretch = current();
      if (stretch == nullptr) return {};
      MemberRead& read = state_.members[stretch->place];
      if (offset < read.next_offset()) {
        gap_.resize(std::min<uint64_t>({want, read.next_offset() - offset, kGapRoomNbytes}));
        return gap_;
      }
      return read.room(std::min<uint64_t>(want, stretch->end - offset));
    }

    void filled(uint64_t offset, size_t nbytes) override {
      const size_t place = current()->place;
      MemberRead& read = state_.members[place];
      if (offset < read.next_offset()) return;
      name_errors(read.zip(), [&] { read.filled(nbytes); });
      if (read.is_complete()) state_.finish(place);
    }

    void done(std::exception_ptr) override {}

    Range range() const {
      return {stretches_.front().begin, stretches_.back().end - stretches_.front().begin};
    }

    // When the read has ended.
    void check() {
      const Stretch* const stretch = current();
      if (stretch == nullptr) return;
      const MemberRead& read = state_.members[stretch->place];
      name_errors(read.zip(),
                  [&] { throw_cut_short(stretch->end - read.next_offset(), read.next_offset()); });
    }

   private:
    // The first stretch that is not all there; nullptr when there is none.
    const Stretch* current() {
      for (; at_ < stretches_.size(); ++at_) {
        const MemberRead& read = state_.members[stretches_[at_].place];
        if (!read.is_complete() && read.next_offset() < stretches_[at_].end) {
          return &stretches_[at_];
        }
      }
      return nullptr;
    }

    State& state_;
    const std::vector<Stretch> stretches_;
    size_t at_ = 0;
    std::vector<uint8_t> gap_;
  };

  // A member that is read in parts.
  struct LargeRead {
    size_t place = 0;
    uint64_t end = 0;
    Parts parts;
  };

  const std::shared_ptr<Source> source;
  const std::shared_ptr<const NpzArchive> given_archive;
  Allocator& allocator;
  const NpzLoadOptions options;
  Workers* workers = nullptr;

  std::optional<Opening> opening;
  std::shared_ptr<const NpzArchive> archive;
  std::deque<MemberRead> members;  // those that are read
  std::vector<NpzEntry> entries;   // of members, in their order
  std::vector<size_t> places;
  // The reads of one round.
  std::deque<SpanSink> spans;
  std::deque<LargeRead> large;

  void begin() {
    members.clear();
    entries.clear();
    places.clear();
    place_of.clear();
    spans.clear();
    large.clear();
    archive = given_archive;
    opening.reset();
    if (!archive) opening.emplace(source, options.limits);
  }

  std::vector<Read> next() {
    if (opening) {
      std::vector<Read> reads = opening->next();
      if (!reads.empty()) return reads;
      archive = opening->take();
      opening.reset();
    }
    if (places.empty()) {
      find_members();
    } else {
      end_round();
    }
    return plan_round();
  }

  void find_members() {
    if (options.keys) {
      for (const std::string& key : *options.keys) add_member(archive->at(key));
    } else {
      for (size_t i = 0; i < archive->members().size(); ++i) add_member(i);
    }
    place_of.clear();
    entries.resize(members.size());
    uint64_t at_once_ns = 0;
    for (size_t place = 0; place < members.size(); ++place) take_from_tail(place, at_once_ns);
  }

  void add_member(size_t member) {
    const auto [found, is_new] = place_of.try_emplace(member, members.size());
    places.push_back(found->second);
    if (!is_new) return;
    name_errors(archive->members()[member],
                [&] { members.emplace_back(*archive, member, allocator, options); });
  }

  void end_round() {
    uint64_t at_once_ns = 0;
    for (SpanSink& span : spans) span.check();
    for (const LargeRead& one : large) {
      MemberRead& read = members[one.place];
      name_errors(read.zip(), [&] { one.parts.check(); });
      read.set_filled(one.end);
      if (read.is_complete()) finish(one.place, &at_once_ns);
    }
    spans.clear();
    large.clear();
    for (size_t place = 0; place < members.size(); ++place) take_from_tail(place, at_once_ns);
  }

  void take_from_tail(size_t place, uint64_t& at_once_ns) {
    MemberRead& read = members[place];
    while (!read.is_complete()) {
      name_errors(read.zip(), [&] { read.take_from_tail(); });
      if (!read.is_complete()) return;
      finish(place, &at_once_ns);
    }
  }

  std::vector<Read> plan_round() {
    const NpzArchive::Tail& tail = archive->tail();
    const uint64_t tail_begin = tail.content.bytes.empty() ? Range::kToEnd : tail.offset;
    const ReadSizes sizes = source->read_sizes(Range::kToEnd);
    std::vector<Read> reads;
    std::vector<Stretch> stretches;  // of the members at their places
    for (size_t place = 0; place < members.size(); ++place) {
      const MemberRead& read = members[place];
      if (read.is_complete()) continue;
      const uint64_t begin = read.next_offset();
      const uint64_t end = std::min(read.wanted_end(), tail_begin);
      if (read.has_header() && end - begin > sizes.part_nbytes) {
        large.push_back({place, end, {}});
        const std::vector<Read> parts = large.back().parts.plan(read.data(), begin, end, *source);
        reads.insert(reads.end(), parts.begin(), parts.end());
      } else {
        stretches.push_back({place, begin, end});
      }
    }
    std::ranges::sort(stretches, {}, &Stretch::begin);
    // What a tail takes, where none was read.
    const uint64_t free_nbytes = given_archive ? kFreeGapNbytes : 0;
    size_t begin = 0;
    for (const size_t end : find_runs(stretches, free_nbytes, sizes)) {
      spans.emplace_back(*this, std::span(stretches).subspan(begin, end - begin));
      reads.push_back({spans.back().range(), &spans.back()});
      begin = end;
    }
    return reads;
  }

  // The bytes of the member are here. Members of different reads may finish at once. `at_once_ns`:
  // what the caller has done already without a break, if it does much.
  void finish(size_t place, uint64_t* at_once_ns = nullptr) {
    MemberRead& read = members[place];
    if (options.header_only) {
      name_errors(read.zip(), [&] {
        if (std::optional<NpzEntry> entry = read.read_header()) entries[place] = std::move(*entry);
      });
      return;
    }
    const uint64_t cost_ns = read.decoding_cost_ns();
    auto decode = [this, place] {
      MemberRead& complete = members[place];
      name_errors(complete.zip(), [&] {
        entries[place] = complete.decode();
        if (options.decoded) options.decoded(entries[place], workers);
      });
    };
    bool is_small = cost_ns < kWorthGiving_ns;
    if (at_once_ns != nullptr) {
      *at_once_ns += cost_ns + kOverhead_ns;
      is_small = is_small && *at_once_ns < kMaxAtOnce_ns;
    }
    if (!is_small && workers != nullptr) {
      workers->run(std::move(decode), cost_ns);
    } else {
      decode();
    }
  }

 private:
  std::unordered_map<size_t, size_t> place_of;  // of each member, while they are added
};

NpzLoader::NpzLoader(std::shared_ptr<Source> source, Allocator& allocator, NpzLoadOptions options)
    : state_(std::make_unique<State>(std::move(source), nullptr, allocator, std::move(options))) {}
NpzLoader::NpzLoader(std::shared_ptr<const NpzArchive> archive, Allocator& allocator,
                     NpzLoadOptions options)
    : state_(std::make_unique<State>(archive->shared_source(), archive, allocator,
                                     std::move(options))) {}
NpzLoader::~NpzLoader() = default;
Source& NpzLoader::source() { return *state_->source; }
void NpzLoader::attach(Workers& workers) { state_->workers = &workers; }
std::vector<Read> NpzLoader::next() { return state_->next(); }
bool NpzLoader::restart() {
  if (state_->given_archive) return false;
  state_->begin();
  return true;
}
const std::shared_ptr<const NpzArchive>& NpzLoader::archive() const { return state_->archive; }
std::vector<NpzEntry>& NpzLoader::entries() { return state_->entries; }
const std::vector<size_t>& NpzLoader::places() const { return state_->places; }

}  // namespace torchnpy
