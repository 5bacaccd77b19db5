# nibble. `make` builds ./nibble; `make help` lists the rest. Nothing here installs anything.
#   SAN=1      address and undefined-behaviour sanitizers     CC=clang   another compiler
#   WERROR=1   warnings are errors (CI)                        PREFIX=/usr/local for `make install`
ifeq ($(origin CC),default)
CC      := gcc
endif
PREFIX  ?= /usr/local
VERSION := 0.1.0
FLOORS  := core configs kernels kernels/cpu autograd model data adapters generate eval train
SRC     := $(foreach f,$(FLOORS),$(sort $(wildcard $(f)/*.c)))
CLI     := $(sort $(wildcard cli/*.c))
TESTS   := $(sort $(wildcard tests/test_*.c))
BENCHES := $(sort $(wildcard bench/bench_*.c))

BUILD   := build/$(notdir $(CC))$(if $(SAN),-san)
WARN    := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wundef -Wno-format-truncation $(if $(WERROR),-Werror)
CFLAGS  ?= -O3 -g
comma   := ,
ALL_CFLAGS := -std=c11 -D_GNU_SOURCE -DNB_VERSION='"$(VERSION)"' -I. -fopenmp -ffp-contract=off -fno-math-errno \
	$(WARN) $(CFLAGS) $(if $(SAN),-fsanitize=address$(comma)undefined -fno-omit-frame-pointer -O1)
LIBS    := -ljansson -lpcre2-8 -lutf8proc -lcrypto -lyaml -lopenblas -lm $(if $(SAN),-fsanitize=address$(comma)undefined) -fopenmp

OBJ      := $(SRC:%.c=$(BUILD)/%.o)
CLI_OBJ  := $(CLI:%.c=$(BUILD)/%.o)
TEST_BIN := $(TESTS:%.c=$(BUILD)/%)
BENCH_BIN := $(BENCHES:%.c=$(BUILD)/%)

all: nibble

nibble: $(BUILD)/nibble
	@ln -sf $< $@

$(BUILD)/nibble: $(CLI_OBJ) $(BUILD)/libnibble.a
	$(CC) -o $@ $(CLI_OBJ) $(BUILD)/libnibble.a $(LIBS)

$(BUILD)/libnibble.a: $(OBJ)
	@rm -f $@
	ar rcs $@ $(OBJ)

$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(ALL_CFLAGS) $(CFLAGS_$(subst /,_,$*)) -MMD -MP -c -o $@ $<

$(BUILD)/tests/test_%: $(BUILD)/tests/test_%.o $(BUILD)/libnibble.a
	$(CC) -o $@ $^ -lcmocka $(LIBS)

$(BUILD)/bench/bench_%: $(BUILD)/bench/bench_%.o $(BUILD)/libnibble.a
	$(CC) -o $@ $^ $(LIBS)

test: nibble $(TEST_BIN)
	tests/run.sh $(BUILD)

clean:
	rm -rf build nibble

.PHONY: all test clean
.SECONDARY:
-include $(OBJ:.o=.d) $(CLI_OBJ:.o=.d) $(TEST_BIN:%=%.d) $(BENCH_BIN:%=%.d)
