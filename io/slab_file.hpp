#pragma once
// The bytes of a model file's tensors until it is whole: written where they will be in the file,
// and remembered, so that writing may be interrupted and go on. For io's own sources.

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <map>
#include <memory>
#include <span>
#include <string>

#include "io/parallel_file.hpp"

namespace atl::io {

/// A file that several ranks write parts of. With a key it is called PATH.partial, and what each
/// rank has written is in PATH.partial.done.RANK; a later SlabFile of the same key goes on with it.
/// Without one it has a name of its own.
class SlabFile {
 public:
  /// Collective. Throws Error on all ranks alike: `path` cannot be written, another process writes
  /// there.
  SlabFile(const std::string& path, const std::string& key, const Writers& writers);
  ~SlabFile();
  SlabFile(const SlabFile&) = delete;
  SlabFile& operator=(const SlabFile&) = delete;

  /// On the first rank. Throws Error where the disk has not room for `bytes`.
  void reserve(std::uint64_t bytes) const;
  /// Checksum of slab `slab` as it was written before; null where it was not.
  const std::uint64_t* written_before(std::uint64_t slab) const;
  std::size_t num_written_before() const { return before_.size(); }
  void read(std::int64_t offset, std::span<std::byte> bytes) const;
  void write(std::int64_t offset, std::span<const std::byte> bytes) const;
  /// Remembers that the slab is there.
  void note(std::uint64_t slab, std::uint64_t checksum);

  const std::string& name() const { return name_; }
  /// Another file beside it, which only who has this one writes.
  std::string name_of_structures() const { return name_ + ".structures"; }
  /// Flushes what this rank wrote to disk.
  void sync() const;
  /// On the first rank, after all have ended with it: removes what is remembered, and with `all`
  /// the file.
  void remove(bool all);

 private:
  struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  void open(bool create);
  bool has_name() const;
  std::string take_up() const;
  void parse(const std::string& lines);

  std::string path_;
  std::string name_;
  std::string key_;
  int rank_;
  int file_ = -1;
  std::map<std::uint64_t, std::uint64_t> before_;
  std::unique_ptr<std::FILE, Close> done_;  // this rank's
};

}  // namespace atl::io
