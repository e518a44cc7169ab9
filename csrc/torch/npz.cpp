#include "torch/npz.h"

#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "format/text.h"

namespace torchnpy {
namespace {

Array make_entry(NpzEntry entry, const NpzOptions& options) {
  c10::Storage storage = share_bytes(std::move(entry.data));
  if (entry.is_view && options.copy) {
    storage = copy_storage(storage);
    entry.is_view = false;
  }
  if (!entry.header) return make_bytes(std::move(storage));
  const bool is_void = entry.header->dtype.type == ScalarType::kVoid;
  Array array = make_array(*entry.header, std::move(storage), /*exclusive=*/!entry.is_view,
                           is_void ? options.dtype : std::nullopt);
  if (options.single) return single_tensor(std::move(array));
  return array;
}

// Whether the first bytes of `source`, which may be fewer, match.
bool begins_as(std::shared_ptr<Source> source, bool (*matches)(ByteView)) {
  constexpr uint64_t kMagicNbytes = 6;
  const uint64_t nbytes = std::min(source->nbytes().value_or(kMagicNbytes), kMagicNbytes);
  try {
    BytesLoader loader(std::move(source), heap_allocator(), 0, nbytes);
    load_one(loader);
    return matches(loader.data().bytes);
  } catch (const FormatError&) {       // fewer bytes
  } catch (const UnsupportedError&) {  // of a server that does not say how many there are
  }
  return false;
}

}  // namespace

RunOptions run_options() {
  RunOptions options;
  options.threads = std::clamp(at::get_num_threads(), 1, kMaxThreads);
  return options;
}

NpzLoadOptions make_load_options(const NpzKeys& keys, const NpzOptions& options) {
  NpzLoadOptions result;
  result.keys = keys;
  result.as_bytes = options.as_bytes;
  result.verify = options.verify;
  result.allow_void = options.dtype.has_value();
  result.limits = options.limits;
  return result;
}

Array clone(const Array& array) {
  if (const at::Tensor* tensor = std::get_if<at::Tensor>(&array)) return tensor->clone();
  std::vector<NamedTensor> fields = std::get<std::vector<NamedTensor>>(array);
  for (NamedTensor& field : fields) field.tensor = field.tensor.clone();
  return fields;
}

Array take_entry(NpzLoader& loader, size_t place, const NpzOptions& options) {
  NpzEntry& entry = loader.entries()[place];
  const size_t member = entry.member;
  try {
    return make_entry(std::move(entry), options);
  } catch (Error& error) {
    const NpzArchive& archive = *loader.archive();
    error.add_member(format_name(archive.members()[member].name));
    error.add_context(archive.source().name());
    throw;
  }
}

std::vector<NamedArray> take_entries(NpzLoader& loader, const NpzKeys& keys,
                                     const NpzOptions& options) {
  const NpzArchive& archive = *loader.archive();
  std::vector<Array> arrays;
  arrays.reserve(loader.entries().size());
  for (size_t place = 0; place < loader.entries().size(); ++place) {
    arrays.push_back(take_entry(loader, place, options));
  }
  std::vector<NamedArray> result;
  result.reserve(loader.places().size());
  std::vector<bool> is_taken(arrays.size());
  for (const size_t place : loader.places()) {
    std::string key = keys ? (*keys)[result.size()] : std::string(archive.key(result.size()));
    // Each key has an array of its own, though two may lead to one member.
    result.push_back({std::move(key), is_taken[place] ? clone(arrays[place]) : arrays[place]});
    is_taken[place] = true;
  }
  return result;
}

bool begins_as_zip(ByteView bytes) {
  // A member's local header, or the end record of an archive without members.
  return as_text(bytes).starts_with("PK\3\4") || as_text(bytes).starts_with("PK\5\6");
}

std::shared_ptr<const NpzArchive> open_npz(std::shared_ptr<Source> source,
                                           const NpzOptions& options) {
  NpzLoader loader(std::move(source), torch_allocator(),
                   make_load_options(std::vector<std::string>{}, options));
  load_one(loader, run_options());
  return loader.archive();
}

std::vector<NamedArray> read_npz(const std::shared_ptr<const NpzArchive>& archive,
                                 const NpzKeys& keys, const NpzOptions& options) {
  NpzLoader loader(archive, torch_allocator(), make_load_options(keys, options));
  load_one(loader, run_options());
  return take_entries(loader, keys, options);
}

std::vector<NpyHeader> read_npz_headers(const std::shared_ptr<const NpzArchive>& archive,
                                        const NpzKeys& keys, const NpzOptions& options) {
  NpzLoadOptions load_options = make_load_options(keys, options);
  load_options.header_only = true;
  NpzLoader loader(archive, torch_allocator(), std::move(load_options));
  load_one(loader, run_options());
  std::vector<NpyHeader> headers;
  for (const size_t place : loader.places()) {
    headers.push_back(loader.entries()[place].header.value());
  }
  return headers;
}

std::vector<MemberDescription> describe_npz(const std::shared_ptr<const NpzArchive>& archive,
                                            size_t count) {
  std::vector<MemberDescription> descriptions;
  for (size_t i = 0; i < std::min(count, archive->members().size()); ++i) {
    const std::string key(archive->key(i));
    std::string text = fmt::format("{} bytes", archive->members()[i].nbytes);
    if (archive->is_local(i)) {
      try {
        const NpyHeader header =
            std::move(read_npz_headers(archive, std::vector<std::string>{key}, {}).front());
        text = format_dtype(header.dtype) + " " + format_shape(header.shape);
      } catch (const FormatError&) {  // no array, or a broken one: who asks for it will hear
      } catch (const UnsupportedError&) {
      }
    }
    descriptions.push_back({format_name(key), std::move(text)});
  }
  return descriptions;
}

std::vector<NamedArray> load_npz(std::shared_ptr<Source> source, const NpzKeys& keys,
                                 const NpzOptions& options) {
  NpzLoader loader(std::move(source), torch_allocator(), make_load_options(keys, options));
  load_one(loader, run_options());
  return take_entries(loader, keys, options);
}

Content load_any(Client& client, const std::string& url, const LoadOptions& options,
                 const NpzOptions& npz_options) {
  const std::shared_ptr<Source> source = client.open(url, options.mmap);
  if (source->name().ends_with(".npz")) {
    try {
      return open_npz(source, npz_options);
    } catch (const FormatError&) {
      if (!begins_as(source, begins_as_npy)) throw;
    }
    return load(source, options);
  }
  try {
    return load(source, options);
  } catch (const FormatError&) {
    if (!begins_as(source, begins_as_zip)) throw;
  }
  return open_npz(source, npz_options);
}

}  // namespace torchnpy
