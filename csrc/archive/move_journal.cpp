#include "archive/move_journal.h"

#include <fmt/format.h>

#include <string_view>

#include "base/checksum.h"
#include "base/error.h"
#include "format/npy.h"

namespace torchnpy {
namespace {

constexpr std::string_view kMagic = "NPYMOVE1";
constexpr size_t kChecksumNbytes = 4;
constexpr uint64_t kMaxFileHeaderNbytes = 12 + kMaxHeaderNbytes;

template <typename Integer>
void put(std::string& bytes, Integer value) {
  for (size_t i = 0; i < sizeof(value); ++i) bytes += static_cast<char>(value >> 8 * i);
}

void put(std::string& bytes, const std::string& text) {
  put(bytes, static_cast<uint32_t>(text.size()));
  bytes += text;
}

void check(bool condition, std::string_view what) {
  if (condition) return;
  throw FormatError(
      fmt::format("expected a journal but found {}; it is not one of torchnpy", what));
}

std::string take(Cursor& cursor, uint64_t max_nbytes) {
  const uint32_t nbytes = cursor.read_u32();
  check(nbytes <= max_nbytes, fmt::format("a part of {} bytes", nbytes));
  return std::string(as_text(cursor.read_bytes(nbytes)));
}

}  // namespace

std::string format_move_journal(const MoveJournal& journal) {
  std::string body;
  body.reserve(journal.old_header.size() + journal.new_header.size() + journal.chunk.size() + 64);
  put(body, journal.old_header);
  put(body, journal.new_header);
  put(body, journal.data_nbytes);
  put(body, journal.moved_from);
  put(body, journal.chunk);
  std::string bytes(kMagic);
  put(bytes, crc32(as_bytes(body)));
  return bytes += body;
}

MoveJournal parse_move_journal(ByteView bytes) {
  check(as_text(bytes).starts_with(kMagic), "another magic");
  Cursor cursor(bytes);
  cursor.skip(kMagic.size());
  const uint32_t expected = cursor.read_u32();
  check(crc32(bytes.subspan(kMagic.size() + kChecksumNbytes)) == expected, "a wrong checksum");
  MoveJournal journal;
  journal.old_header = take(cursor, kMaxFileHeaderNbytes);
  journal.new_header = take(cursor, kMaxFileHeaderNbytes);
  journal.data_nbytes = cursor.read_u64();
  journal.moved_from = cursor.read_u64();
  journal.chunk = take(cursor, kMaxMoveNbytes);
  check(cursor.remaining() == 0, fmt::format("{} bytes behind it", cursor.remaining()));
  check(journal.new_header.size() >= journal.old_header.size(), "a header that becomes shorter");
  check(journal.data_nbytes <= INT64_MAX - kMaxFileHeaderNbytes &&
            journal.moved_from <= journal.data_nbytes &&
            journal.chunk.size() <= journal.data_nbytes - journal.moved_from,
        "data of impossible sizes");
  return journal;
}

}  // namespace torchnpy
