#include "archive/header_loader.h"

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

namespace torchnpy {

struct NpyHeaderLoader::State final : Sink {
  State(std::shared_ptr<Source> source_in, bool check_data_in)
      : source(std::move(source_in)), check_data(check_data_in) {}

  const std::shared_ptr<Source> source;
  const bool check_data;
  std::vector<uint8_t> content;
  uint64_t filled_nbytes = 0;
  std::optional<NpyHeader> header;

  ByteView prefix() const { return ByteView(content).first(filled_nbytes); }

  std::vector<Read> next() {
    if (header) return {};
    if (content.empty()) return read_to(kHeaderReadNbytes);
    const std::optional<uint64_t> data_offset = find_npy_data_offset(prefix());
    const bool is_cut_short = filled_nbytes < content.size();
    if (data_offset && *data_offset > filled_nbytes && !is_cut_short) return read_to(*data_offset);
    header = parse_npy_header(prefix());  // throws: it is cut short
    const bool has_nbytes = header->dtype.type != ScalarType::kObject;
    if (const auto nbytes = source->nbytes(); nbytes && check_data && has_nbytes) {
      check_npy_data(*header, *nbytes - std::min(*nbytes, header->data_offset));
    }
    return {};
  }

  std::vector<Read> read_to(uint64_t end) {
    content.resize(end);
    return {{{filled_nbytes, end - filled_nbytes}, this}};
  }

  MutableBytes room(uint64_t offset, size_t want) override {
    if (offset >= content.size()) return {};
    return MutableBytes(content).subspan(offset, std::min<uint64_t>(want, content.size() - offset));
  }
  void filled(uint64_t offset, size_t nbytes) override { filled_nbytes = offset + nbytes; }
  void done(std::exception_ptr) override {}

  bool restart() override {
    content.clear();
    filled_nbytes = 0;
    header.reset();
    return true;
  }
};

NpyHeaderLoader::NpyHeaderLoader(std::shared_ptr<Source> source, bool check_data)
    : state_(std::make_unique<State>(std::move(source), check_data)) {}
NpyHeaderLoader::~NpyHeaderLoader() = default;
Source& NpyHeaderLoader::source() { return *state_->source; }
std::vector<Read> NpyHeaderLoader::next() { return state_->next(); }
bool NpyHeaderLoader::restart() { return state_->restart(); }
NpyHeader& NpyHeaderLoader::header() { return *state_->header; }
ByteView NpyHeaderLoader::bytes() const {
  return ByteView(state_->content).first(state_->header->data_offset);
}

}  // namespace torchnpy
