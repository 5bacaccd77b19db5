# nibble: `make` builds ./nibble, `make help` lists the rest. Nothing here installs anything: when
# something is missing, ./bootstrap does that.
#   CC=clang   another compiler              SAN=1               address and undefined-behaviour sanitizers
#   V=1        show whole commands           WERROR=1            warnings are errors
#   PREFIX=/usr/local   where `make install` puts things (DESTDIR in front)
#   CUDA=0     without the GPU backend          CUDA_ARCHS="90"     for these GPU architectures alone
#   CUDA_HOME=/usr/local/cuda   the toolkit: found by itself there, in /opt/cuda, or by nvcc on PATH
ifeq ($(origin CC),default)
CC      := gcc
endif
ifeq ($(origin CXX),default)
CXX     := $(subst clang,clang++,$(subst gcc,g++,$(CC)))
endif
PREFIX  ?= /usr/local
VERSION := 0.1.0
FLOORS  := core configs kernels kernels/cpu autograd model data adapters generate eval train measure
SRC     := $(filter-out kernels/comm_mpi.c,$(foreach f,$(FLOORS),$(sort $(wildcard $(f)/*.c)))) kernels/cuda/library.c \
	kernels/cuda/comm_nccl.c
CLI     := $(sort $(wildcard cli/*.c))
TESTS   := $(sort $(wildcard tests/test_*.c))
ROWS    := $(sort $(wildcard tests/rows*.c))
BENCHES := $(sort $(wildcard bench/bench_*.c))
FUZZ_SRC := $(sort $(wildcard tests/fuzz/*.c))

BUILD   := build/$(notdir $(CC))$(if $(SAN),-san)$(if $(FUZZ),-fuzz)
comma   := ,
SANITIZE := $(if $(SAN)$(FUZZ),-fsanitize=address$(comma)undefined$(if $(FUZZ),$(comma)fuzzer-no-link) -fno-sanitize-recover=undefined)
WARN    := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wundef -Wpointer-arith -Wno-missing-field-initializers \
	$(if $(findstring clang,$(CC)),,-Wno-format-truncation) $(if $(WERROR),-Werror)
CFLAGS  ?= -O3 -g
ALL_CFLAGS := -std=c11 -D_GNU_SOURCE -DNB_VERSION='"$(VERSION)"' -I. -fopenmp -ffp-contract=off -fno-math-errno \
	$(WARN) $(CFLAGS) $(if $(SANITIZE),$(SANITIZE) -fno-omit-frame-pointer -O1) $(if $(FUZZ),-DNB_FUZZ -Wno-pass-failed)
LIBS    := -ljansson -lpcre2-8 -lutf8proc -lcrypto -lyaml -lopenblas -lm -ldl $(SANITIZE) -fopenmp

# The GPU backend, kernels/cuda, is built twice: by nvcc into nibble where there is a toolkit, and by the host's compilers
# against an emulator ("emu") into the tests and nibble-emu, everywhere. The quick start builds for the cards at hand only.
CUDA_CU   := $(sort $(wildcard kernels/cuda/*.cu))
CUDA_C    := $(sort $(filter-out $(SRC),$(wildcard kernels/cuda/*.c)))
EMU_CC    := $(sort $(wildcard kernels/cuda/*.cc))
ifndef CUDA_HOME
CUDA_HOME := $(firstword $(patsubst %/bin/nvcc,%,$(wildcard /usr/local/cuda/bin/nvcc /opt/cuda/bin/nvcc) \
	$(realpath $(shell command -v nvcc))))
endif
NVCC      := $(if $(CUDA_HOME),$(wildcard $(CUDA_HOME)/bin/nvcc))
ifneq ($(filter quickstart,$(MAKECMDGOALS)),)
ifndef CUDA_ARCHS
CUDA_ARCHS := $(shell nvidia-smi --query-gpu=compute_cap --format=csv$(comma)noheader 2>/dev/null | tr -d . | \
	sort -un | awk '$$1 >= 80')
CUDA      ?= $(if $(strip $(CUDA_ARCHS)),$(if $(NVCC),1,0),0)
endif
endif
CUDA      ?= $(if $(NVCC),1,0)
ifeq ($(CUDA),1)
ifeq ($(strip $(CUDA_ARCHS)),)
CUDA_ARCHS := $(filter $(patsubst sm_%,%,$(shell $(NVCC) --list-gpu-code)),80 90 100 120)
endif
# PTX of the lowest architecture serves cards between and after these.
GENCODE   := $(foreach a,$(CUDA_ARCHS),-gencode arch=compute_$a$(comma)code=$(if $(filter 80,$a),[sm_80$(comma)compute_80],sm_$a))
NVCC_FLAGS := -O3 -std=c++17 -I. -lineinfo $(GENCODE) -Xptxas -v $(if $(WERROR),-Werror all-warnings) \
	-Xcompiler -Wall$(comma)-Wextra$(comma)-fno-exceptions$(comma)-fno-rtti$(comma)-fno-threadsafe-statics
CUDA_OBJ  := $(CUDA_CU:%.cu=build/cuda/%.o) $(CUDA_C:%.c=$(BUILD)/%.o)
CUDART    := $(firstword $(wildcard $(CUDA_HOME)/lib64/libcudart_static.a $(CUDA_HOME)/targets/*/lib/libcudart_static.a \
	$(CUDA_HOME)/lib/*/libcudart_static.a) -lcudart_static)
CUDA_LIBS := $(if $(strip $(CUDA_OBJ)),$(CUDART) -ldl -lrt -lpthread)
endif
# The emulator has no exceptions and no C++ library, so that $(CC) links it.
EMU_FLAGS := -std=c++17 -O2 -g -I. -DNB_EMU -fno-exceptions -fno-rtti -fno-threadsafe-statics -ffp-contract=off -Wall -Wextra \
	-Wshadow -Wundef -Wno-unknown-pragmas $(if $(findstring clang,$(CXX)),-Wno-pass-failed,-Wno-class-memaccess) \
	-Wshadow $(if $(WERROR),-Werror) $(if $(SAN),$(SANITIZE) -fno-omit-frame-pointer -O1)
EMU_OBJ   := $(CUDA_CU:%.cu=$(BUILD)/emu/%.o) $(CUDA_C:%.c=$(BUILD)/emu/%.o) $(EMU_CC:%.cc=$(BUILD)/emu/%.o)

# What processes on several processors or machines exchange goes through MPI, a library loaded at run time: built where
# mpicc is.
MPICC     := $(shell command -v mpicc)
MPI_LIB   := $(if $(MPICC),$(BUILD)/libnibble_mpi.so)

# The checker of emulated kernels, tests/emu: they are built with the thread sanitizer's hooks, which are its own.
CHECK_OBJ := $(CUDA_CU:%.cu=$(BUILD)/emu-check/%.o) $(filter-out $(CUDA_CU:%.cu=$(BUILD)/emu/%.o),$(EMU_OBJ)) \
	$(BUILD)/emu/tests/emu/check.o
CHECKERS  := $(if $(SAN),,$(BUILD)/tests/rows-check $(BUILD)/tests/rows-profile)

OBJ       := $(SRC:%.c=$(BUILD)/%.o)
CLI_OBJ   := $(CLI:%.c=$(BUILD)/%.o)
TEST_BIN  := $(TESTS:%.c=$(BUILD)/%)
ROWS_OBJ  := $(ROWS:%.c=$(BUILD)/%.o)
FUZZ_OBJ  := $(FUZZ_SRC:%.c=$(BUILD)/%.o)
GPUCHECK_OBJ := $(patsubst %.c,$(BUILD)/%.o,$(filter-out %/device.c %/no_blas.c,$(sort $(wildcard tests/gpu/*.c)))) $(ROWS_OBJ)
BENCH_BIN := $(BENCHES:%.c=$(BUILD)/%)

# One short line a command; V=1 shows it whole.
run = $(if $(V),,@printf '  %-8s %s\n' '$(1)' '$@'; )$(2)

all: nibble  ## build ./nibble

nibble: $(BUILD)/nibble $(MPI_LIB)
	@ln -sf $< $@

$(BUILD)/nibble: $(CLI_OBJ) $(CUDA_OBJ) $(BUILD)/libnibble.a $(BUILD)/cuda.txt
	$(call run,link,$(CC) -o $@ $(CLI_OBJ) $(CUDA_OBJ) $(BUILD)/libnibble.a $(CUDA_LIBS) $(LIBS))

$(BUILD)/nibble-emu: $(CLI_OBJ) $(EMU_OBJ) $(BUILD)/libnibble.a
	$(call run,link,$(CC) -o $@ $^ $(LIBS))

$(BUILD)/libnibble_mpi.so: kernels/comm_mpi.c kernels/comm.h kernels/backend.h
	@mkdir -p $(@D)
	$(call run,mpicc,$(MPICC) -std=c11 -D_GNU_SOURCE -I. -O2 -g $(WARN) -shared -fPIC -o $@ $<)

$(BUILD)/libnibble.a: $(OBJ)
	@rm -f $@
	$(call run,archive,ar rcs $@ $(OBJ))

$(BUILD)/%.o: %.c | $(BUILD)/probed-build
	@mkdir -p $(@D)
	$(call run,compile,$(CC) $(ALL_CFLAGS) $(CFLAGS_$(subst /,_,$*)) -MMD -MP -c -o $@ $<)

$(BUILD)/kernels/cuda/%.o: kernels/cuda/%.c $(if $(filter 1,$(CUDA)),build/cuda/flags.txt) | $(BUILD)/probed-build
	@mkdir -p $(@D)
	$(call run,compile,$(CC) $(ALL_CFLAGS) $(CUDA_HOME:%=-isystem %/include) -DNB_CUDA_ARCHS='"$(strip $(CUDA_ARCHS))"' -MMD -MP -c -o $@ $<)

$(BUILD)/emu/tests/gpu/device.o: ALL_CFLAGS += -DGC_GPU
$(BUILD)/tests/gpu/device.o: $(BUILD)/cuda.txt
$(BUILD)/tests/gpu/device.o: ALL_CFLAGS += $(if $(filter 1,$(CUDA)),-DGC_GPU -isystem $(CUDA_HOME)/include)

# What ptxas says (registers, spills) and nvcc warns of stays beside the object; warnings and errors are shown.
build/cuda/%.o: %.cu build/cuda/flags.txt
	@mkdir -p $(@D)
	$(call run,nvcc,$(NVCC) $(NVCC_FLAGS) -MMD -MP -MF $(@:.o=.d) -c -o $@ $< >$(@:.o=.ptxas) 2>&1; \
	    status=$$?; grep -vE '^ptxas info|^ +[0-9]+ bytes stack frame' $(@:.o=.ptxas); exit $$status)

# These change only when what they hold does.
build/cuda/flags.txt: now
	@mkdir -p $(@D); echo '$(NVCC) $(NVCC_FLAGS)' | cmp -s - $@ || echo '$(NVCC) $(NVCC_FLAGS)' >$@
$(BUILD)/cuda.txt: now
	@mkdir -p $(@D); echo 'CUDA=$(CUDA)' | cmp -s - $@ || echo 'CUDA=$(CUDA)' >$@
now:

$(BUILD)/emu/%.o: %.cu | $(BUILD)/probed-test
	@mkdir -p $(@D)
	$(call run,emu,$(CXX) -x c++ $(EMU_FLAGS) -MMD -MP -c -o $@ $<)

$(BUILD)/emu/%.o: %.cc | $(BUILD)/probed-test
	@mkdir -p $(@D)
	$(call run,emu,$(CXX) $(EMU_FLAGS) -MMD -MP -c -o $@ $<)

$(BUILD)/emu-check/%.o: %.cu | $(BUILD)/probed-test
	@mkdir -p $(@D)
	@echo '$(CXX) $(EMU_FLAGS) -O1 -fsanitize=thread -c -x c++' >$(BUILD)/emu-check/compile.txt
	$(call run,check,$(CXX) -x c++ $(EMU_FLAGS) -O1 -fsanitize=thread -MMD -MP -c -o $@ $<)

$(BUILD)/tests/rows-check: $(BUILD)/tests/test_rows.o $(ROWS_OBJ)
$(BUILD)/tests/rows-profile: $(BUILD)/tests/emu/profile.o $(BUILD)/tests/rows.o
$(BUILD)/tests/rows-check $(BUILD)/tests/rows-profile: $(CHECK_OBJ) $(BUILD)/libnibble.a
	@echo '$(check_link)' >$@.link
	$(call run,link,$(check_link))
check_link = $(CXX) -no-pie -o $@ $(filter %.o,$^) $(filter %.a,$^) -lcmocka $(LIBS)

$(BUILD)/emu/%.o: %.c | $(BUILD)/probed-test
	@mkdir -p $(@D)
	$(call run,emu,$(CC) $(ALL_CFLAGS) -DNB_EMU -MMD -MP -c -o $@ $<)

$(BUILD)/tests/test_%.o: tests/test_%.c | $(BUILD)/probed-test
	@mkdir -p $(@D)
	$(call run,compile,$(CC) $(ALL_CFLAGS) -MMD -MP -c -o $@ $<)

$(BUILD)/tests/test_%: $(BUILD)/tests/test_%.o $(EMU_OBJ) $(BUILD)/libnibble.a
	$(call run,link,$(CC) -o $@ $(filter %.o,$^) $(filter %.a,$^) -lcmocka $(LIBS))

$(BUILD)/tests/test_rows $(BUILD)/tests/test_cuda_gemm: $(ROWS_OBJ)
$(BUILD)/tests/test_fuzz: $(FUZZ_OBJ)

# All targets of tests/fuzz in one program; its name when it is run says which.
$(BUILD)/fuzz: $(FUZZ_OBJ) $(BUILD)/libnibble.a
	$(call run,link,$(CC) -o $@ $^ -fsanitize=fuzzer $(LIBS))

# Checks and measures kernels and steps, on the card at hand or on the emulator.
$(BUILD)/gpucheck: $(GPUCHECK_OBJ) $(BUILD)/tests/gpu/device.o $(CUDA_OBJ) $(BUILD)/libnibble.a $(BUILD)/cuda.txt
	$(call run,link,$(CC) -o $@ $(filter %.o %.a,$^) $(CUDA_LIBS) $(LIBS))
$(BUILD)/gpucheck-emu: $(GPUCHECK_OBJ) $(BUILD)/emu/tests/gpu/device.o $(EMU_OBJ) $(BUILD)/libnibble.a
	$(call run,link,$(CC) -o $@ $^ $(LIBS))

# For a GPU machine without these libraries: everything but glibc linked in (tests/gpu/run.sh pack).
PACK_LIBS := -static-libgcc -Wl$(comma)-Bstatic -ljansson -lpcre2-8 -lutf8proc -lcrypto -lyaml -lgomp \
	-Wl$(comma)-Bdynamic -lm -ldl -lpthread
pack: build/gpu/nibble build/gpu/gpucheck
build/gpu/nibble: $(CLI_OBJ) $(BUILD)/tests/gpu/no_blas.o $(CUDA_OBJ) $(BUILD)/libnibble.a
	@mkdir -p $(@D)
	$(call run,link,$(CC) -s -o $@ $^ $(CUDA_LIBS) $(PACK_LIBS))
build/gpu/gpucheck: $(GPUCHECK_OBJ) $(BUILD)/tests/gpu/device.o $(BUILD)/tests/gpu/no_blas.o $(CUDA_OBJ) $(BUILD)/libnibble.a
	@mkdir -p $(@D)
	$(call run,link,$(CC) -s -o $@ $^ $(CUDA_LIBS) $(PACK_LIBS))

$(BUILD)/bench/bench_%: $(BUILD)/bench/bench_%.o $(CUDA_OBJ) $(BUILD)/libnibble.a $(BUILD)/cuda.txt
	$(call run,link,$(CC) -o $@ $(filter %.o,$^) $(filter %.a,$^) $(CUDA_LIBS) $(LIBS))

# Before the first file is compiled: one clear message when a library is missing.
$(BUILD)/probed-%:
	@mkdir -p $(@D)
	@CC="$(CC)" ./bootstrap probe $* >$@.log || { cat $@.log; exit 1; }
	@mv $@.log $@

test: tests-built  ## build and run all tests
	tests/run.sh $(BUILD)

tests-built: $(BUILD)/nibble $(MPI_LIB) $(BUILD)/nibble-emu $(BUILD)/gpucheck-emu $(TEST_BIN) $(CHECKERS)

objects: $(OBJ) $(CLI_OBJ) $(CUDA_OBJ) $(sort $(EMU_OBJ) $(CHECK_OBJ)) $(GPUCHECK_OBJ) $(FUZZ_OBJ) $(BUILD)/tests/gpu/device.o $(BUILD)/tests/gpu/no_blas.o $(TEST_BIN:%=%.o) $(BENCH_BIN:%=%.o)

quickstart: nibble  ## fine-tune, evaluate and generate with the sample base and data
	configs/quickstart.sh ./nibble

lint:  ## the house rules, and a build without warnings by each compiler
	tests/lint.sh

bench: $(BENCH_BIN)  ## build and run the benchmarks
	@for b in $(BENCH_BIN); do echo "== $$b"; $$b || exit 1; done

fuzz:  ## look for files that break the readers (libFuzzer): FUZZ_SECONDS=60 each, FUZZ_TARGETS="gguf yaml"
	@mkdir -p build; ./bootstrap probe fuzz >build/fuzz.log || { tail -1 build/fuzz.log; exit 1; }
	@$(MAKE) CC=clang FUZZ=1 CUDA=0 build/clang-fuzz/fuzz
	tests/fuzz/run.sh build/clang-fuzz $(FUZZ_TARGETS)

bench-peers: nibble $(BUILD)/bench/bench_gemm  ## nibble beside PyTorch + PEFT and llama.cpp, from PyPI in build/peers: PEERS="--shapes tiny" for less
	bench/peers/run.sh ./nibble $(PEERS)

interop: nibble  ## read what nibble exports with the programs it is for (from PyPI, in build/interop)
	tests/interop/run.sh ./nibble

probe:  ## what is there to build with, and what is missing
	@CC="$(CC)" ./bootstrap probe test

install: nibble  ## put nibble and its documents under DESTDIR/PREFIX
	install -d "$(DESTDIR)$(PREFIX)/bin" "$(DESTDIR)$(PREFIX)/share/doc/nibble"
	install -m 755 $(BUILD)/nibble "$(DESTDIR)$(PREFIX)/bin/nibble"
	$(if $(MPI_LIB),install -d "$(DESTDIR)$(PREFIX)/lib/nibble" && \
	    install -m 755 $(MPI_LIB) "$(DESTDIR)$(PREFIX)/lib/nibble")
	install -m 644 LICENSE $(wildcard README.md CHANGELOG.md docs/*.md) "$(DESTDIR)$(PREFIX)/share/doc/nibble"

uninstall:  ## remove what install put there
	rm -f "$(DESTDIR)$(PREFIX)/bin/nibble"
	rm -rf "$(DESTDIR)$(PREFIX)/share/doc/nibble" "$(DESTDIR)$(PREFIX)/lib/nibble"

clean:  ## remove everything that was built
	rm -rf build nibble

help:  ## this list
	@awk -F '## ' '/^[a-z-]+:.*## / { split($$1, t, ":"); printf "  %-10s %s\n", t[1], $$2 }' Makefile

.PHONY: all nibble quickstart test tests-built pack objects lint bench bench-peers interop fuzz probe install uninstall clean help now
.SECONDARY:
-include $(OBJ:.o=.d) $(CLI_OBJ:.o=.d) $(CUDA_OBJ:.o=.d) $(sort $(EMU_OBJ:.o=.d) $(CHECK_OBJ:.o=.d)) $(GPUCHECK_OBJ:.o=.d) $(BUILD)/tests/gpu/device.d $(BUILD)/tests/emu/profile.d $(TEST_BIN:%=%.d) $(BENCH_BIN:%=%.d)
