#pragma once
// Where a run is told of other weights: a folder with a file update.json, {"model": PATH}.

#include <optional>
#include <string>

namespace atl {

/// The folder of --control, on rank 0. A file update.json that is there is claimed by another name,
/// update.json.taken, so that the next one may come meanwhile; in the end it is update.json.done,
/// or update.json.refused with the reason in update.json.refused.txt. What a run has claimed and
/// not taken up is update.json again, for the next run, unless a newer one is there.
class UpdateFolder {
 public:
  /// Makes the folder where it is not there. Throws Error when it cannot be made or written.
  explicit UpdateFolder(const std::string& path);
  ~UpdateFolder() { give_back(); }
  UpdateFolder(const UpdateFolder&) = delete;
  UpdateFolder& operator=(const UpdateFolder&) = delete;

  /// The model file of the update that waits; empty: none does. `now` in seconds: looks at most
  /// every 0.2 s. A file that does not say what it must is refused here.
  const std::string& waiting(double now);

  /// The update that waited is taken up.
  void done();
  /// It is not, for this reason, which is also said on stderr.
  void refuse(const std::string& reason);

 private:
  std::string file(const char* suffix = "") const { return path_ + "/update.json" + suffix; }
  bool claim();
  void read();
  void give_back();
  /// The claimed file gets another name. Where it cannot, no more updates are looked for.
  void rename_claimed(const std::string& to);

  std::string path_;
  double next_look_ = 0;
  bool looks_ = true;
  bool claimed_ = false;
  std::string model_;                // of the claimed file, once it is understood
  std::optional<std::string> text_;  // of the claimed file when it was last not understood
};

}  // namespace atl
