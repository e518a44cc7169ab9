// What is sent to S3 to make an object, and what its answers say. Pure functions.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "transport/http.h"

namespace torchnpy {

// One that was begun.
struct S3Upload {
  std::string id;
  bool wants_checksums = false;  // of the parts, when it ends
  // The store will keep a checksum of all the bytes, not one of the parts' checksums.
  bool keeps_whole_checksum = false;
};

struct S3Part {
  std::string etag;  // as the store gave it
  uint32_t crc32c = 0;
  uint64_t nbytes = 0;
  bool has_checksum = false;  // that the store has compared
};

// The bytes of part `number` (from 1): so many that 10 000 parts are enough. Of an object of
// `total` all are alike; else they grow towards the end, and those before are alike, as some stores
// want them. `wanted_nbytes` where that does. Throws UnsupportedError for more than S3 can keep.
uint64_t plan_part_nbytes(uint64_t number, std::optional<uint64_t> total, uint64_t wanted_nbytes);

// `crc32c`: of the content, which the store compares.
HttpCommand make_put(const HttpBody& content, uint32_t crc32c, bool if_none_match);
HttpCommand make_upload_begin();
// Throws TransportError, without the object's name, for an answer that is none.
S3Upload parse_upload_begun(const HttpResponse& response);
HttpCommand make_part_put(const S3Upload& upload, uint64_t number, const HttpBody& content,
                          uint32_t crc32c);
// The part, as it has to be named when the upload ends. Throws as above.
S3Part parse_part_put(const S3Upload& upload, const HttpResponse& response, uint32_t crc32c,
                      uint64_t nbytes);
HttpCommand make_upload_end(const S3Upload& upload, const std::vector<S3Part>& parts,
                            bool if_none_match);
// Whether the answer to that is an error, or none: S3 sends its status before it knows.
bool holds_upload_error(const HttpResponse& response);
HttpCommand make_upload_abort(const S3Upload& upload);

// A HEAD that asks for the checksum, too.
HttpCommand make_look();
// What tells an upload's object from others.
struct S3Content {
  uint64_t nbytes = 0;
  uint32_t crc32c = 0;
  std::string etag;  // "" where it is not known
};
// Of one PUT.
S3Content describe_content(const HttpBody& content, uint32_t crc32c);
// Of parts: its tag is known where theirs are MD5.
S3Content describe_content(const std::vector<S3Part>& parts);
// Whether the answer to make_look() is about such an object.
bool is_content(const HttpResponse& response, const S3Content& content);

}  // namespace torchnpy
