// S3: s3://bucket/key to signed requests (AWS Signature Version 4), regions, listings.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "transport/client.h"
#include "transport/http.h"

namespace torchnpy {

// What the objects of one client share: credentials, the regions of buckets, the clock's
// skew. Thread-safe; usable in a forked child.
class S3Account;

// Reads no file. Throws ArgumentError for options that are wrong.
std::shared_ptr<S3Account> make_s3_account(std::shared_ptr<const ClientOptions> options,
                                           std::shared_ptr<TransportMetrics> metrics = nullptr);

// `url` is s3://bucket/key; everything after the bucket is the raw key. Finds the endpoint,
// the region and the credentials when they are not known yet (may read files: not for I/O
// threads). Throws ArgumentError for a URL or a setting that is wrong, UnsupportedError for
// kinds of buckets and credentials that are refused, TransportError (kDenied) when there are
// no credentials.
std::shared_ptr<HttpObject> make_s3_object(const std::string& url,
                                           std::shared_ptr<S3Account> account);

// One page of ListObjectsV2 for s3://bucket/prefix. Blocks. `fetch` reads the answer to a
// request. Throws as make_s3_object() and `fetch`, FormatError for an answer that is none.
ObjectPage list_s3(const std::string& prefix, const std::string& continuation,
                   std::shared_ptr<S3Account> account,
                   const std::function<std::string(std::shared_ptr<HttpObject>)>& fetch);

}  // namespace torchnpy
