#pragma once
// Signals that ask a run to end in order: SIGTERM, SIGINT and SIGUSR1.

#include <string>

namespace atl {

/// Exit code of a run that was asked to end and can go on with --resume (EX_TEMPFAIL of
/// sysexits.h).
inline constexpr int stopped_exit_code = 75;

/// From now on the signals are noted instead of ending the process. One that comes more than a
/// second after the first ends it at once: launchers often send the same request twice, along
/// different ways.
void watch_stop_signals();

/// The first signal that came; 0 when none has.
int stop_signal();

/// "SIGTERM" and the like.
std::string name_of_signal(int signal);

}  // namespace atl
