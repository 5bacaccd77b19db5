# nibble: `make` builds ./nibble, `make help` lists the rest. Nothing here installs anything: when
# something is missing, ./bootstrap does that.
#   CC=clang   another compiler              SAN=1               address and undefined-behaviour sanitizers
#   V=1        show whole commands           WERROR=1            warnings are errors
#   PREFIX=/usr/local   where `make install` puts things (DESTDIR in front)
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
comma   := ,
SANITIZE := $(if $(SAN),-fsanitize=address$(comma)undefined -fno-sanitize-recover=undefined)
WARN    := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wundef -Wno-missing-field-initializers \
	$(if $(findstring clang,$(CC)),,-Wno-format-truncation) $(if $(WERROR),-Werror)
CFLAGS  ?= -O3 -g
ALL_CFLAGS := -std=c11 -D_GNU_SOURCE -DNB_VERSION='"$(VERSION)"' -I. -fopenmp -ffp-contract=off -fno-math-errno \
	$(WARN) $(CFLAGS) $(if $(SAN),$(SANITIZE) -fno-omit-frame-pointer -O1)
LIBS    := -ljansson -lpcre2-8 -lutf8proc -lcrypto -lyaml -lopenblas -lm $(SANITIZE) -fopenmp

OBJ       := $(SRC:%.c=$(BUILD)/%.o)
CLI_OBJ   := $(CLI:%.c=$(BUILD)/%.o)
TEST_BIN  := $(TESTS:%.c=$(BUILD)/%)
BENCH_BIN := $(BENCHES:%.c=$(BUILD)/%)

# One short line a command; V=1 shows it whole.
run = $(if $(V),,@printf '  %-8s %s\n' '$(1)' '$@'; )$(2)

all: nibble  ## build ./nibble

nibble: $(BUILD)/nibble
	@ln -sf $< $@

$(BUILD)/nibble: $(CLI_OBJ) $(BUILD)/libnibble.a
	$(call run,link,$(CC) -o $@ $(CLI_OBJ) $(BUILD)/libnibble.a $(LIBS))

$(BUILD)/libnibble.a: $(OBJ)
	@rm -f $@
	$(call run,archive,ar rcs $@ $(OBJ))

$(BUILD)/%.o: %.c | $(BUILD)/probed-build
	@mkdir -p $(@D)
	$(call run,compile,$(CC) $(ALL_CFLAGS) $(CFLAGS_$(subst /,_,$*)) -MMD -MP -c -o $@ $<)

$(BUILD)/tests/test_%.o: tests/test_%.c | $(BUILD)/probed-test
	@mkdir -p $(@D)
	$(call run,compile,$(CC) $(ALL_CFLAGS) -MMD -MP -c -o $@ $<)

$(BUILD)/tests/test_%: $(BUILD)/tests/test_%.o $(BUILD)/libnibble.a
	$(call run,link,$(CC) -o $@ $^ -lcmocka $(LIBS))

$(BUILD)/bench/bench_%: $(BUILD)/bench/bench_%.o $(BUILD)/libnibble.a
	$(call run,link,$(CC) -o $@ $^ $(LIBS))

# Before the first file is compiled: one clear message when a library is missing.
$(BUILD)/probed-%:
	@mkdir -p $(@D)
	@CC="$(CC)" ./bootstrap probe $* >$@.log || { cat $@.log; exit 1; }
	@mv $@.log $@

test: tests-built  ## build and run all tests
	tests/run.sh $(BUILD)

tests-built: $(BUILD)/nibble $(TEST_BIN)

objects: $(OBJ) $(CLI_OBJ) $(TEST_BIN:%=%.o) $(BENCH_BIN:%=%.o)

quickstart: nibble  ## fine-tune, evaluate and generate with the sample base and data
	configs/quickstart.sh ./nibble

lint:  ## the house rules, and a build without warnings by each compiler
	tests/lint.sh

bench: $(BENCH_BIN)  ## build and run the benchmarks
	@for b in $(BENCH_BIN); do echo "== $$b"; $$b || exit 1; done

probe:  ## what is there to build with, and what is missing
	@CC="$(CC)" ./bootstrap probe test

install: nibble  ## put nibble and its documents under DESTDIR/PREFIX
	install -d "$(DESTDIR)$(PREFIX)/bin" "$(DESTDIR)$(PREFIX)/share/doc/nibble"
	install -m 755 $(BUILD)/nibble "$(DESTDIR)$(PREFIX)/bin/nibble"
	install -m 644 LICENSE $(wildcard README.md CHANGELOG.md docs/*.md) "$(DESTDIR)$(PREFIX)/share/doc/nibble"

uninstall:  ## remove what install put there
	rm -f "$(DESTDIR)$(PREFIX)/bin/nibble"
	rm -rf "$(DESTDIR)$(PREFIX)/share/doc/nibble"

clean:  ## remove everything that was built
	rm -rf build nibble

help:  ## this list
	@awk -F '## ' '/^[a-z]+:.*## / { split($$1, t, ":"); printf "  %-10s %s\n", t[1], $$2 }' Makefile

.PHONY: all nibble quickstart test tests-built objects lint bench probe install uninstall clean help
.SECONDARY:
-include $(OBJ:.o=.d) $(CLI_OBJ:.o=.d) $(TEST_BIN:%=%.d) $(BENCH_BIN:%=%.d)
