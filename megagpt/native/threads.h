// Threads for a moment's work.
#pragma once

#include <system_error>
#include <thread>
#include <vector>

namespace megagpt {

// Has a thread do `work`; where the system gives no more threads it is done here, before this returns.
template <typename Work>
void start_thread(std::vector<std::thread>& threads, Work work) {
    try {
        threads.emplace_back(work);
    } catch (const std::system_error&) {
        work();
    }
}

}  // namespace megagpt
