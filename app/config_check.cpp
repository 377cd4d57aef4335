#include "app/config_check.hpp"

namespace atl {

CLI::App& add_check(CLI::App& app, CheckOptions& o) {
  CLI::App& check = *app.add_subcommand(
      "check", "Say whether this machine is right for a job (start it under the job's launcher)");
  check
      .add_option("--folder", o.folder,
                  "Folder that all ranks are to see, where the job's files will be; 16 MB are "
                  "written there and removed")
      ->capture_default_str();
  check.add_option("--report", o.report, "Write all that was found here (JSON)");
  check.add_flag(
      "--no-rates", o.no_rates,
      "Leave out what cores and links between nodes are measured to do, which other work "
      "on the machine would disturb");
  return check;
}

}  // namespace atl
