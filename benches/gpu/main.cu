// What a GPU really does, where Cutover's design rests on it: `probe SECTION`. Each figure is a line of
// section, name, value and unit, separated by tabs. `benches/gpu/probe` builds it, runs all sections and keeps the table.
#include <cstring>

#include "probe.h"

int main(int argc, char** argv) {
  struct {
    const char* name;
    void (*run)();
  } sections[] = {{"device", device_section},     {"pool", pool_section},     {"oom", oom_section},
                  {"stall", stall_section},       {"transfer", transfer_section}, {"load", load_section},
                  {"beside", beside_section},     {"host", host_section},     {"launch", launch_section},
                  {"gemm", gemm_section},
                  {"staging", staging_section},   {"algorithms", algorithms_section}};
  for (auto& section : sections)
    if (argc == 2 && !std::strcmp(argv[1], section.name)) {
      section_name() = section.name;
      section.run();
      return 0;
    }
  std::fprintf(stderr, "probe SECTION, one of:");
  for (auto& section : sections) std::fprintf(stderr, " %s", section.name);
  std::fprintf(stderr, "\n");
  return 2;
}
