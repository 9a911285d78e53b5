// Compiled once, for every CPU: nothing that an instruction set's files define may have a name that others share.
#include <chrono>
#include <thread>

namespace normkit {

void wait_for_others(int times) {
    constexpr int kSpin = 2000, kYield = 4000;  // about 5 us, then about a millisecond
    if (times > kYield)
        std::this_thread::sleep_for(std::chrono::microseconds(20));
    else if (times > kSpin)
        std::this_thread::yield();
}

}  // namespace normkit
