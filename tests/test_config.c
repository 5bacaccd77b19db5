/* The configuration: typing by key, every kind of mistake with its place, --set, resolve. */
#include "tests/test.h"

#include <unistd.h>

#include "configs/config.h"
#include "configs/keys.h"
#include "core/log.h"

/* Four lines that make a whole configuration; what a case adds begins in line 5. */
#define BASE "base_model: m\noutput_dir: o\ndatasets:\n  - {path: d.jsonl, type: completion}\n"

/* The file is written plainly: thousands of them, none worth a sync to the disk. */
static nb_status load_bytes(nb_config *c, const char *text, size_t size, const char *const *sets, int n_sets) {
    assert_int_equal(chdir(nb_test_tmp()), 0); /* messages then name the file as the cases do */
    remove("c.yaml"); /* some file systems sync a file that is cut short and written again */
    FILE *f = fopen("c.yaml", "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, size, f), size);
    assert_int_equal(fclose(f), 0);
    return nb_config_load(c, "c.yaml", sets, n_sets);
}
static nb_status load(nb_config *c, const char *text) { return load_bytes(c, text, strlen(text), NULL, 0); }
static nb_status load_set(nb_config *c, const char *text, const char *set) {
    return load_bytes(c, text, strlen(text), &set, 1);
}

static void test_devices(void **state) {
    (void)state;
    static const char *const names[] = {"auto", "cpu", "cuda", "cuda:0", "cuda:12", "emu"};
    for (int i = 0; i < NB_LEN(names); i++) {
        nb_config c;
        char *set = nb_asprintf("device=%s", names[i]);
        assert_ok(load_set(&c, BASE, set));
        assert_string_equal(c.device, names[i]);
        nb_config_free(&c);
        free(set);
    }
}

static void test_defaults(void **state) {
    (void)state;
    nb_config c;
    assert_ok(load(&c, BASE));
    assert_string_equal(c.base_model, "m");
    assert_int_equal(c.adapter, NB_ADAPTER_QLORA);
    assert_true(c.load_in_4bit && c.bnb_4bit_use_double_quant && c.sample_packing);
    assert_int_equal(c.bf16, NB_AUTO);
    assert_string_equal(c.device, "auto");
    assert_int_equal(c.lora_r, 16);
    assert_int_equal(c.lora_alpha, 32);
    assert_close(c.learning_rate, 2e-4, 0);
    assert_close(c.warmup_ratio, 0.03, 0);
    assert_close(c.max_grad_norm, 1, 0);
    assert_int_equal(c.lr_scheduler, NB_LR_COSINE);
    assert_int_equal(c.excess_length_strategy, NB_EXCESS_RAISE);
    assert_int_equal(c.seed, 42);
    assert_true(c.lora_target_modules.scalar);
    assert_string_equal(c.lora_target_modules.v[0], "all-linear");
    assert_false(nb_is_set(&c, lora_r));
    assert_int_equal(c.at[NB_KEY_output_dir].line, 2);
    assert_int_equal(c.at[NB_KEY_output_dir].col, 13);
    assert_int_equal(c.n_datasets, 1);
    assert_string_equal(c.datasets[0].name, "d");
    assert_string_equal(c.datasets[0].roles_assistant.v[1], "gpt");
    nb_config_free(&c);
}

static void test_typed_by_key(void **state) {
    (void)state;
    nb_config c;
    assert_ok(load(&c, BASE "learning_rate: 1e-5\nweight_decay: .1\nadam_epsilon: 1E-6\nload_in_4bit: yes\n"
                            "sample_packing: off\nbf16: on\nbase_model_sha256: no\n"
                            "special_tokens: {eos_token: on, pad_token: ~}\n"
                            "tokens: [no, 'null', y]\nmemory_limit: 1.5 GiB\nlora_r: \"8\"\nmax_grad_norm: null\n"
                            "lora_model_dir:\npeft_layers_to_transform: [0, 2]\nlora_target_modules: '.*\\.q_proj'\n"
                            "eval_strategy: no\nnum_epochs: 0.5\nlr_scheduler_type: constant_with_warmup\n"
                            "optim: adamw_torch\n"));
    assert_close(c.learning_rate, 1e-5, 0);
    assert_close(c.weight_decay, 0.1, 0);
    assert_close(c.adam_epsilon, 1e-6, 0);
    assert_true(c.load_in_4bit);
    assert_false(c.sample_packing);
    assert_int_equal(c.bf16, 1);
    assert_string_equal(c.base_model_sha256, "no");
    assert_string_equal(c.special_tokens_eos_token, "on");
    assert_null(c.special_tokens_pad_token);
    assert_int_equal(c.tokens.n, 3);
    assert_string_equal(c.tokens.v[1], "null");
    assert_true(c.memory_limit == (uint64_t)3 << 29);
    assert_int_equal(c.lora_r, 8);
    assert_int_equal(c.lora_alpha, 16);
    assert_close(c.max_grad_norm, 0, 0);
    assert_null(c.lora_model_dir);
    assert_false(nb_is_set(&c, lora_model_dir));
    assert_int_equal(c.peft_layers_to_transform.v[1], 2);
    assert_true(c.lora_target_modules.scalar);
    assert_int_equal(c.eval_strategy, NB_WHEN_NO);
    assert_int_equal(c.evals_per_epoch, 0);
    assert_int_equal(c.lr_scheduler, NB_LR_CONSTANT);
    nb_config_free(&c);
}

static void test_spellings_of_checkpointing(void **state) {
    (void)state;
    static const struct {
        const char *text;
        int value;
    } cases[] = {{"false", NB_CHECKPOINTING_FALSE}, {"no", NB_CHECKPOINTING_FALSE}, {"True", NB_CHECKPOINTING_TRUE},
                 {"on", NB_CHECKPOINTING_TRUE}, {"full", NB_CHECKPOINTING_TRUE}, {"offload", NB_CHECKPOINTING_TRUE},
                 {"smart", NB_CHECKPOINTING_SMART}, {"auto", NB_CHECKPOINTING_AUTO}};
    nb_config c;
    char text[256];
    for (int i = 0; i < NB_LEN(cases); i++) {
        snprintf(text, sizeof text, "base_model: m\noutput_dir: o\ngradient_checkpointing: %s\n"
                 "datasets: [{path: d.jsonl, type: completion}]\n", cases[i].text);
        assert_ok(load(&c, text));
        assert_int_equal(c.gradient_checkpointing, cases[i].value);
        nb_config_free(&c);
    }
    assert_fails(load(&c, "base_model: m\noutput_dir: o\ngradient_checkpointing: some\n"
                          "datasets: [{path: d.jsonl, type: completion}]\n"), NB_EINPUT, "false, smart, true, auto");
}

static void test_other_tools_names(void **state) {
    (void)state;
    nb_config c;
    nb_log_set_level(NB_LOG_QUIET);
    assert_ok(load(&c, "model_name_or_path: m\noutput_dir: o\nquantization_bit: 4\nlora_rank: 4\nlora_target: all\n"
                       "cutoff_len: 128\nper_device_train_batch_size: 3\nnum_train_epochs: 2\nwandb_project: x\n"
                       "wandb_run_id:\n"
                       "deepspeed: zero2.json\nfsdp: [a, b]\nfsdp_config: {a: b}\ntrust_remote_code: false\nfp16: no\n"
                       "flash_attention: true\ntf32: true\nload_in_8bit:\nsave_safetensors: true\n"
                       "datasets:\n  - path: d.jsonl\n    type: chat_template\n    split: train\n"
                       "    message_field_role: from\n    roles:\n      assistant: bot\n"));
    nb_log_set_level(NB_LOG_INFO);
    assert_int_equal(c.lora_r, 4);
    assert_true(c.load_in_4bit);
    assert_string_equal(c.lora_target_modules.v[0], "all-linear");
    assert_int_equal(c.sequence_len, 128);
    assert_int_equal(c.micro_batch_size, 3);
    assert_int_equal(c.eval_batch_size, 3);
    assert_close(c.num_epochs, 2, 0);
    assert_string_equal(c.datasets[0].message_property_mappings_role, "from");
    assert_int_equal(c.datasets[0].roles_assistant.n, 1);
    assert_string_equal(c.datasets[0].roles_assistant.v[0], "bot");
    nb_config_free(&c);
}

/* A Jinja template: a file, or a text, each in one key; both read back from what resolves. */
static void test_jinja(void **state) {
    (void)state;
#define JINJA "base_model: m\noutput_dir: o\ndatasets:\n  - path: d.jsonl\n    type: chat_template\n"
    static const struct {
        const char *text, *jinja;
    } rows[] = {{JINJA "chat_template: jinja:a/b.jinja\n", "jinja:a/b.jinja"},
                {JINJA "template: 'jinja:c d.jinja'\n", "jinja:c d.jinja"},
                {JINJA "chat_template_jinja: \"{{ x }}\\n\"\n", "{{ x }}\n"},
                {JINJA "chat_template: jinja\nchat_template_jinja: |\n  {% if a %}\n    'b': \"c\" # d\n  {% endif %}\n",
                 "{% if a %}\n  'b': \"c\" # d\n{% endif %}\n"}};
    for (int i = 0; i < NB_LEN(rows); i++) {
        nb_config c, again;
        nb_text resolved = {0};
        assert_ok(load(&c, rows[i].text));
        assert_int_equal(c.chat_template, NB_CHAT_JINJA);
        assert_string_equal(c.chat_template_jinja, rows[i].jinja);
        assert_ok(nb_config_resolve_text(&c, &resolved));
        assert_ok(load(&again, resolved.s));
        assert_int_equal(again.chat_template, NB_CHAT_JINJA);
        assert_string_equal(again.chat_template_jinja, rows[i].jinja);
        nb_text_free(&resolved);
        nb_config_free(&c);
        nb_config_free(&again);
    }
    nb_config c;
    assert_fails(load(&c, JINJA "chat_template: jinja\n"), NB_EINPUT, "6:16: chat_template: jinja needs the template");
    assert_fails(load(&c, JINJA "chat_template: chatml\nchat_template_jinja: x\n"), NB_EINPUT, "excludes");
#undef JINJA
}

static void test_anchors(void **state) {
    (void)state;
    nb_config c;
    assert_ok(load(&c, "base_model: &m m\noutput_dir: *m\ndatasets:\n"
                       "  - &one {path: a.jsonl, type: completion, weight: 2, field: body}\n"
                       "  - {<<: *one, path: b.jsonl, field_text: text2}\n"
                       "  - <<: [{weight: 3}, *one]\n    path: c.jsonl\n"));
    assert_string_equal(c.output_dir, "m");
    assert_int_equal(c.n_datasets, 3);
    assert_string_equal(c.datasets[1].path, "b.jsonl");
    assert_close(c.datasets[1].weight, 2, 0);
    assert_string_equal(c.datasets[1].field_text, "text2"); /* the entry's own key wins over a merged alias of it */
    assert_close(c.datasets[2].weight, 3, 0);
    assert_string_equal(c.datasets[2].field_text, "body");
    nb_config_free(&c);
}

static void test_env(void **state) {
    (void)state;
    nb_config c;
    setenv("NB_TEST_DIR", "/some where", 1);
    unsetenv("NB_TEST_NONE");
    assert_ok(load_set(&c, BASE, "output_dir=${env:NB_TEST_DIR}/out"));
    assert_string_equal(c.output_dir, "/some where/out");
    nb_config_free(&c);
    assert_fails(load(&c, BASE "tokenizer: ${env:NB_TEST_NONE}\n"), NB_EINPUT,
                 "c.yaml:5:12: tokenizer: the environment has no variable NB_TEST_NONE");
    assert_fails(load(&c, BASE "tokenizer: ${env:NB\n"), NB_EINPUT, "c.yaml:5:12: tokenizer: '${env:NB' has a ${env:");
    assert_fails(load(&c, BASE "eot_tokens: ['${env:NB_TEST_DIR}']\n"), NB_EINPUT, "replaced in paths only");
}

static void test_set(void **state) {
    (void)state;
    nb_config c;
    const char *sets[] = {"lora_r=8", "lora_rank=4", "learning_rate=1e-3", "datasets.0.path=x.jsonl",
                          "datasets.1.path=y.csv", "datasets.1.type=alpaca", "special_tokens.pad_token=<pad>",
                          "lora_target_modules=[q_proj, v_proj]", "datasets.0.roles.user=[me]", "lora_dropout=",
                          "base_model_sha256=a=b", "test_datasets=[{path: t.jsonl, type: completion}]"};
    assert_ok(load_bytes(&c, BASE "lora_r: 2\nlora_dropout: 0.5\n", strlen(BASE) + 28, sets, NB_LEN(sets)));
    assert_int_equal(c.lora_r, 4);
    assert_int_equal(c.at[NB_KEY_lora_r].line, -1);
    assert_close(c.learning_rate, 1e-3, 0);
    assert_int_equal(c.n_datasets, 2);
    assert_string_equal(c.datasets[0].path, "x.jsonl");
    assert_string_equal(c.datasets[0].roles_user.v[0], "me");
    assert_string_equal(c.datasets[1].path, "y.csv");
    assert_int_equal(c.datasets[1].type, NB_DATA_ALPACA);
    assert_string_equal(c.special_tokens_pad_token, "<pad>");
    assert_int_equal(c.lora_target_modules.n, 2);
    assert_close(c.lora_dropout, 0, 0);
    assert_string_equal(c.base_model_sha256, "a=b");
    assert_int_equal(c.n_test_datasets, 1);
    nb_config_free(&c);
    static const char *const bad[][2] = {
        {"lora_r", "--set lora_r: wants KEY=VALUE"},
        {"lora_r=x", "--set lora_r: 'x' is not a whole number"},
        {"lora_ranc=8", "--set lora_ranc: unknown key; did you mean lora_r"},
        {"datasets.2.path=x", "--set datasets.2.path: there are 1 entries; the next one is datasets.1"},
        {"datasets.x.path=x", "--set datasets.x.path: wants datasets.INDEX.KEY"},
        {"datasets.0.wieght=2", "--set datasets.0.wieght: unknown key; did you mean weight?"},
        {"datasets=x", "--set datasets: wants a list"},
        {"special_tokens=x", "--set special_tokens: a map; set its keys one by one"},
        {"lora_target_modules=[q", "--set lora_target_modules:2:1: did not find"},
        {"lora_r=[1]", "--set lora_r: '[1]' is not a whole number"},
    };
    for (int i = 0; i < NB_LEN(bad); i++) assert_fails(load_set(&c, BASE, bad[i][0]), NB_EINPUT, bad[i][1]);
    assert_fails(load_set(&c, BASE "warmup_ratio: 0.1\n", "warmup_steps=3"), NB_EINPUT,
                 "--set warmup_steps: excludes warmup_ratio");
}

/* What is behind BASE, and the message's beginning. */
static void test_mistakes(void **state) {
    (void)state;
    static const char *const cases[][2] = {
        {"lorar_r: 8\n", "c.yaml:5:1: lorar_r: unknown key; did you mean lora_r?"},
        {"sequence_length: 8\n", "c.yaml:5:1: sequence_length: unknown key; did you mean sequence_len?"},
        {"dataset: 8\n", "c.yaml:5:1: dataset: unknown key; did you mean datasets?"},
        {"xyzzy: 8\n", "c.yaml:5:1: xyzzy: unknown key; `nibble config keys` lists them"},
        {"field_text: x\n", "c.yaml:5:1: field_text: belongs to an entry of datasets; indent it"},
        {"seed: 1\nseed: 2\n", "c.yaml:6:1: seed: already set in line 5"},
        {"lora_r: 8\nlora_rank: 8\n", "c.yaml:6:1: lora_rank: lora_r is already set in line 5"},
        {"lora_r: eight\n", "c.yaml:5:9: lora_r: 'eight' is not a whole number"},
        {"lora_r: 1.5\n", "c.yaml:5:9: lora_r: '1.5' is not a whole number"},
        {"lora_r: 0x10\n", "c.yaml:5:9: lora_r: '0x10' is not a whole number"},
        {"lora_r: 99999999999999999999\n",
         "c.yaml:5:9: lora_r: 99999999999999999999 is out of range, which is [1, 4096]"},
        {"lora_r: 0\n", "c.yaml:5:9: lora_r: 0 is out of range, which is [1, 4096]"},
        {"lora_r: [8]\n", "c.yaml:5:9: lora_r: wants a single value, not a list"},
        {"lora_r: {a: 8}\n", "c.yaml:5:9: lora_r: wants a single value, not a map"},
        {"lora_dropout: 1\n", "c.yaml:5:15: lora_dropout: 1 is out of range, which is [0, 1)"},
        {"learning_rate: nan\n", "c.yaml:5:16: learning_rate: 'nan' is not a number"},
        {"learning_rate: 1e999\n", "c.yaml:5:16: learning_rate: 1e999 is out of range"},
        {"learning_rate: 2e-4x\n", "c.yaml:5:16: learning_rate: '2e-4x' is not a number"},
        {"num_epochs: 0\n", "c.yaml:5:13: num_epochs: 0 is out of range, which is (0, 100000]"},
        {"sample_packing: maybe\n", "c.yaml:5:17: sample_packing: 'maybe' is not true or false"},
        {"bf16: maybe\n", "c.yaml:5:7: bf16: 'maybe' is not true or false or auto"},
        {"optimizer: sgd\n", "c.yaml:5:12: optimizer: 'sgd' is none of adamw"},
        {"adapter: dora\n", "c.yaml:5:10: adapter: 'dora' is none of qlora, lora, full"},
        {"adapter:\n", "c.yaml:5:9: adapter: empty; write qlora, lora or full"},
        {"device: gpu\n", "c.yaml:5:9: device: 'gpu' is none of auto, cpu, cuda, cuda:N, emu"},
        {"device: 'cuda:'\n", "c.yaml:5:9: device: 'cuda:' is none of auto, cpu, cuda, cuda:N"},
        {"device: cuda:-1\n", "c.yaml:5:9: device: 'cuda:-1' is none of"},
        {"device: cuda:1x\n", "c.yaml:5:9: device: 'cuda:1x' is none of"},
        {"memory_limit: lots\n", "c.yaml:5:15: memory_limit: 'lots' is not an amount of memory"},
        {"memory_limit: 3 GiBs\n", "c.yaml:5:15: memory_limit: '3 GiBs' is not an amount"},
        {"tokens: [[a]]\n", "c.yaml:5:9: tokens: each item must be a text, not a list"},
        {"tokens: {a: b}\n", "c.yaml:5:9: tokens: wants a list, not a map"},
        {"peft_layers_to_transform: [1, x]\n", "c.yaml:5:27: peft_layers_to_transform: 'x' is not a whole number"},
        {"adapter: full\nloraplus_lr_ratio: 2\n", "c.yaml:6:20: loraplus_lr_ratio: adapter full has no B matrices"},
        {"rank_pattern: 3\n", "c.yaml:5:15: rank_pattern: wants a map, not a single value"},
        {"rank_pattern: {q_proj: 0}\n", "c.yaml:5:15: rank_pattern: 0 is out of range"},
        {"rank_pattern: {q_proj: [1]}\n", "c.yaml:5:15: rank_pattern: 'q_proj' must have a number"},
        {"rank_pattern: {q_proj: 2.5}\n", "c.yaml:5:15: rank_pattern: q_proj has 2.5, which is not a whole number"},
        {"special_tokens: x\n", "c.yaml:5:17: special_tokens: wants a map, not a single value"},
        {"special_tokens:\n  pad_tokn: x\n",
         "c.yaml:6:3: special_tokens.pad_tokn: unknown key; did you mean special_tokens.pad_token?"},
        {"quantization_bit: 8\n", "c.yaml:5:19: quantization_bit: only 4 is supported"},
        {"test_datasets: x\n", "c.yaml:5:16: test_datasets: wants a list, not a single value"},
        {"test_datasets: [x]\n", "c.yaml:5:17: test_datasets.0: wants a map with path and type"},
        {"test_datasets: [{type: alpaca}]\n", "c.yaml:5:17: test_datasets.0.path: required"},
        {"test_datasets: [{path: x}]\n", "c.yaml:5:17: test_datasets.0.type: required, one of completion, alpaca"},
        {"test_datasets: [{path: x, type: sharegpt}]\n", "c.yaml:5:33: test_datasets.0.type: 'sharegpt' is none of"},
        {"test_datasets: [{path: x, type: alpaca, metrics: [bleu]}]\n",
         "c.yaml:5:50: test_datasets.0.metrics: 'bleu' is none of loss,"},
        {"test_datasets: [{path: x, type: alpaca, metrics: [regex]}]\n",
         "c.yaml:5:50: test_datasets.0.metrics: regex needs the key regex"},
        {"test_datasets: [{path: x, type: alpaca, lora_r: 1}]\n",
         "c.yaml:5:41: test_datasets.0.lora_r: belongs to the top"},
        {"test_datasets: [{path: x, type: alpaca, name: a}, {path: y, type: alpaca, name: a}]\n",
         "c.yaml:5:81: test_datasets.1.name: 'a' is the name of test_datasets.0 too"},
        {"sequence_len: 8\ntest_datasets: [{path: x, type: completion, chunk: {overlap: 8}}]\n",
         "c.yaml:6:62: test_datasets.0.chunk.overlap: 8 must be less"},
        {"tokenizer: ''\n", "c.yaml:5:12: tokenizer: an empty path"},
        /* other tools' keys that would change the run */
        {"trust_remote_code: true\n", "c.yaml:5:1: trust_remote_code: nibble runs no code"},
        {"hf_token: hf_abc\n", "c.yaml:5:1: hf_token: a secret does not belong"},
        {"wandb_api_key: abc\n", "c.yaml:5:1: wandb_api_key: a secret"},
        {"load_in_8bit: true\n", "c.yaml:5:1: load_in_8bit: 8-bit bases"},
        {"rl: dpo\n", "c.yaml:5:1: rl: preference training is not in this version"},
        /* keys that lean on each other */
        {"warmup_steps: 5\nwarmup_ratio: 0.1\n", "c.yaml:5:15: warmup_steps: excludes warmup_ratio"},
        {"eval_steps: 5\nevals_per_epoch: 2\n", "c.yaml:6:18: evals_per_epoch: excludes eval_steps"},
        {"save_steps: 5\nsaves_per_epoch: 2\n", "c.yaml:6:18: saves_per_epoch: excludes save_steps"},
        {"eval_strategy: steps\n", "c.yaml:5:16: eval_strategy: steps needs eval_steps"},
        {"save_strategy: epoch\nsave_steps: 3\n", "c.yaml:6:13: save_steps: needs save_strategy: steps"},
        {"load_in_4bit: false\nadapter: qlora\n", "c.yaml:5:15: load_in_4bit: adapter qlora needs a 4-bit base"},
        {"load_in_4bit: true\nadapter: full\n", "c.yaml:5:15: load_in_4bit: adapter full"},
        {"reinit_weights: true\n", "c.yaml:5:17: reinit_weights: random weights need adapter: full"},
        {"adapter: full\nlora_modules_to_save: [lm_head]\n", "c.yaml:6:23: lora_modules_to_save: adapter full trains"},
        {"lora_target_modules: []\n", "c.yaml:5:22: lora_target_modules: empty"},
        {"lora_target_linear: true\nlora_target_modules: [q_proj]\n", "c.yaml:5:21: lora_target_linear: excludes"},
        {"val_set_size: 0.1\ntest_datasets: [{path: x, type: alpaca}]\n",
         "c.yaml:5:15: val_set_size: excludes test_datasets"},
        {"val_set_size: 10.5\n", "c.yaml:5:15: val_set_size: a share below 1 or a whole number"},
        {"early_stopping_patience: 3\n", "c.yaml:5:26: early_stopping_patience: needs held-out data"},
        {"load_best_model_at_end: true\n", "c.yaml:5:25: load_best_model_at_end: needs held-out data"},
        /* YAML itself */
        {"seed: 1\n\tlora_r: 8\n", "c.yaml:6:1: a tab where YAML wants spaces"},
        {"seed: [1\nlora_r: 8\n", "c.yaml:6:7: did not find expected ',' or ']'"},
        {"seed: 'a\n", "c.yaml:6:1: found unexpected end of stream"},
        {"seed: *nope\n", "c.yaml:5:7: *nope refers to no finished anchor &nope above"},
        {"seed: &a [*a]\n", "c.yaml:5:11: *a refers to no finished anchor"},
        {"? [a]\n: b\n", "c.yaml:5:3: a key must be a plain word"},
        {"---\nseed: 2\n", "c.yaml:5:1: a second document begins here"},
        {"seed: !!python/object:os.system x\n", "c.yaml:5:7: "},
        {"seed: !mine 1\n", "c.yaml:5:7: tags like this one are not used here"},
        {"<<: x\n", "c.yaml:5:5: << wants a map"},
        {"<<: {a: 1}\n<<: {b: 1}\n", "c.yaml:6:1: a second << in one map"},
        {"base_model_sha256: \"a\\0b\"\n", "c.yaml:5:20: a NUL character"},
        {"seed: \x01\n", "c.yaml:5:7: a control character"},
        {"seed: \xff\n", "c.yaml:5:7: not UTF-8"},
        {"# \xc3\xa4\xc3\xb6 \xc3\n", "c.yaml:5:6: not UTF-8"},
        {"# \xed\xa0\x80\n", "c.yaml:5:3: not UTF-8"},
        {"# \xc0\x80\n", "c.yaml:5:3: not UTF-8"},
    };
    char text[1024];
    int wrong = 0;
    for (int i = 0; i < NB_LEN(cases); i++) {
        nb_config c;
        snprintf(text, sizeof text, "%s%s", BASE, cases[i][0]);
        nb_status st = load(&c, text);
        if (st == NB_EINPUT && strstr(nb_message(), cases[i][1]) == nb_message()) continue;
        print_error("'%s': status %d, message '%s', wanted '%s'\n", cases[i][0], st, nb_message(), cases[i][1]);
        if (st == NB_OK) nb_config_free(&c);
        wrong++;
    }
    assert_int_equal(wrong, 0);
}

static void test_whole_file(void **state) {
    (void)state;
    nb_config c;
    assert_fails(load(&c, ""), NB_EINPUT, "c.yaml: the file is empty");
    assert_fails(load(&c, "# only a comment\n"), NB_EINPUT, "c.yaml: the file is empty");
    assert_fails(load(&c, "- a\n- b\n"), NB_EINPUT, "c.yaml:1:1: wants `key: value` lines, not a list");
    assert_fails(load(&c, "just words\n"), NB_EINPUT, "c.yaml:1:1: wants `key: value` lines");
    assert_fails(load_bytes(&c, "a\0b: 1\n", 7, NULL, 0), NB_EINPUT, "c.yaml:1:2: a control character");
    assert_fails(load_bytes(&c, "\xff\xfe" "a\0", 4, NULL, 0), NB_EINPUT, "c.yaml:1:1: not UTF-8");
    assert_ok(load(&c, "\xef\xbb\xbf" BASE)); /* a byte order mark is harmless */
    nb_config_free(&c);
    assert_fails(nb_config_load(&c, "absent.yaml", NULL, 0), NB_EIO, "absent.yaml");
    assert_fails(nb_config_load(&c, "/", NULL, 0), NB_EINPUT, "a folder");
    assert_fails(load(&c, "base_model: m\n"), NB_EINPUT, "2 mistakes\nc.yaml: datasets: required");
    assert_non_null(strstr(nb_message(), "c.yaml: output_dir: required"));
    assert_fails(load(&c, BASE "lora_r: x\nlora_alpha: y\nfoo: 1\n"), NB_EINPUT, "3 mistakes\nc.yaml:5:9: lora_r");
    assert_non_null(strstr(nb_message(), "c.yaml:7:1: foo"));
    size_t big = NB_YAML_MAX_BYTES + 1;
    char *spaces = nb_malloc(big);
    memset(spaces, '\n', big);
    assert_fails(load_bytes(&c, spaces, big, NULL, 0), NB_EINPUT, "at most 1 MiB");
    free(spaces);
}

/* Depth and expansion are capped: a "billion laughs" file must fail quickly and with words. */
static void test_caps(void **state) {
    (void)state;
    nb_config c;
    nb_text t = {0};
    nb_text_puts(&t, BASE "tokens: ");
    for (int i = 0; i < 40; i++) nb_text_puts(&t, "[");
    assert_fails(load(&c, t.s), NB_EINPUT, "nested too deep");
    nb_text_free(&t);
    nb_text_puts(&t, "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for (int i = 1; i < 12; i++) {
        nb_text_printf(&t, "a%d: &a%d [", i, i);
        for (int k = 0; k < 10; k++) nb_text_printf(&t, "%s*a%d", k ? ", " : "", i - 1);
        nb_text_puts(&t, "]\n");
    }
    assert_fails(load(&c, t.s), NB_EINPUT, "aliases expand to more than 100000 values");
    nb_text_free(&t);
}

/* resolve(load(x)) is a fixed point, keeps odd texts, and every key is there. */
static void test_resolve(void **state) {
    (void)state;
    static const char *const files[] = {
        BASE,
        BASE "warmup_steps: 10\neval_steps: 5\nval_set_size: 0.125\nmax_grad_norm: null\nmemory_limit: 3GB\n"
             "max_steps: 7\n"
             "lora_target_modules: [q_proj, 'weird \"one\"\\']\nlearning_rate: 0.1\n"
             "tokens: [no, ~x, 'a: b', \"t\\tn\\n\", '']\n",
        BASE "adapter: lora\nload_in_4bit: false\nlora_target_linear: yes\nsave_strategy: no\neval_strategy: no\n"
             "special_tokens: {pad_token: '<|pad|>', eos_token: 'null'}\npeft_layers_to_transform: 3\nthreads: 2\n"
             "rank_pattern: {'(q|k)_proj': 8, up_proj: 2}\nalpha_pattern: {up_proj: 0.5}\n",
        BASE "adapter: full\nreinit_weights: true\nbf16: false\ncosine_min_lr_ratio: 0.3333333333333333\n"
             "test_datasets:\n"
             "  - {path: a/, type: chat_template, name: 'x y', metrics: [loss, regex], regex: '^\\d+$'}\n"
             "  - {path: a, type: tokenized, roles: {user: []}, chunk: {overlap: 3}}\n",
    };
    for (int i = 0; i < NB_LEN(files); i++) {
        nb_config c, again;
        nb_text one = {0}, two = {0};
        assert_ok(load(&c, files[i]));
        assert_ok(nb_config_resolve_text(&c, &one));
        assert_ok(load(&again, one.s));
        assert_ok(nb_config_resolve_text(&again, &two));
        assert_string_equal(one.s, two.s);
        assert_memory_equal(&c.learning_rate, &again.learning_rate, sizeof(double));
        assert_int_equal(c.tokens.n, again.tokens.n);
        for (int k = 0; k < c.tokens.n; k++) assert_string_equal(c.tokens.v[k], again.tokens.v[k]);
        for (int k = 0; k < NB_KEY_COUNT; k++) {
            const char *dot = strchr(nb_keys[k].name, '.');
            if (nb_keys[k].kind != NB_KIND_SECTION) assert_non_null(strstr(one.s, dot ? dot + 1 : nb_keys[k].name));
        }
        nb_text_free(&one);
        nb_text_free(&two);
        nb_config_free(&c);
        nb_config_free(&again);
    }
}

/* The enums of config.h against the ranges of the tables. */
static void test_choices(void **state) {
    (void)state;
    const struct { const nb_key *k; int value; const char *name; } rows[] = {
        {&nb_keys[NB_KEY_bnb_4bit_compute_dtype], NB_COMPUTE_F32, "float32"},
        {&nb_keys[NB_KEY_adapter], NB_ADAPTER_QLORA, "qlora"},
        {&nb_keys[NB_KEY_adapter], NB_ADAPTER_LORA, "lora"},
        {&nb_keys[NB_KEY_adapter], NB_ADAPTER_FULL, "full"},
        {&nb_keys[NB_KEY_chat_template], NB_CHAT_CHATML, "chatml"},
        {&nb_keys[NB_KEY_chat_template], NB_CHAT_LLAMA3, "llama3"},
        {&nb_keys[NB_KEY_chat_template], NB_CHAT_MISTRAL, "mistral"},
        {&nb_keys[NB_KEY_chat_template], NB_CHAT_ZEPHYR, "zephyr"},
        {&nb_keys[NB_KEY_chat_template], NB_CHAT_ALPACA, "alpaca"},
        {&nb_keys[NB_KEY_chat_template], NB_CHAT_JINJA, "jinja"},
        {&nb_keys[NB_KEY_excess_length_strategy], NB_EXCESS_SPLIT, "split"},
        {&nb_keys[NB_KEY_excess_length_strategy], NB_EXCESS_TRUNCATE, "truncate"},
        {&nb_keys[NB_KEY_excess_length_strategy], NB_EXCESS_DROP, "drop"},
        {&nb_keys[NB_KEY_lr_scheduler], NB_LR_LINEAR, "linear"},
        {&nb_keys[NB_KEY_lr_scheduler], NB_LR_COSINE, "cosine"},
        {&nb_keys[NB_KEY_zero_stage], NB_ZERO_OPTIMIZER, "1"},
        {&nb_keys[NB_KEY_zero_stage], NB_ZERO_BASE, "3"},
        {&nb_keys[NB_KEY_eval_strategy], NB_WHEN_STEPS, "steps"},
        {&nb_keys[NB_KEY_save_strategy], NB_WHEN_EPOCH, "epoch"},
        {&nb_dataset_keys[NB_DATASET_KEY_type], NB_DATA_ALPACA, "alpaca"},
        {&nb_dataset_keys[NB_DATASET_KEY_type], NB_DATA_PROMPT_COMPLETION, "prompt_completion"},
        {&nb_dataset_keys[NB_DATASET_KEY_type], NB_DATA_CHAT_TEMPLATE, "chat_template"},
        {&nb_dataset_keys[NB_DATASET_KEY_type], NB_DATA_TOKENIZED, "tokenized"},
        {&nb_dataset_keys[NB_DATASET_KEY_train_on_eos], NB_EOS_TURN, "turn"},
        {&nb_dataset_keys[NB_DATASET_KEY_train_on_eos], NB_EOS_NONE, "none"},
    };
    char buf[64];
    for (int i = 0; i < NB_LEN(rows); i++)
        assert_string_equal(nb_choice_name(rows[i].k->range, rows[i].value, 0, buf), rows[i].name);
}

/* No name or alias means two keys, so that no file reads differently by the order of rows. */
static void check_names(const nb_key *keys, int n) {
    for (int i = 0; i < n; i++) {
        if (keys[i].kind == NB_KIND_SECTION) continue;
        char words[512];
        snprintf(words, sizeof words, "%s %s", keys[i].name, keys[i].aliases);
        for (char *save, *w = strtok_r(words, " ", &save); w; w = strtok_r(NULL, " ", &save)) {
            const char *only;
            w[strcspn(w, "=")] = 0;
            assert_int_equal(nb_key_find(keys, n, w, &only), i);
        }
        assert_true(keys[i].help[0] != 0);
    }
}
static void test_names(void **state) {
    (void)state;
    check_names(nb_keys, NB_KEY_COUNT);
    check_names(nb_dataset_keys, NB_DATASET_KEY_COUNT);
}

/* Any file made of pieces of a good one is read or refused, never a crash. */
static void test_mutated(void **state) {
    (void)state;
    static const char good[] = BASE "lora_r: 8\nspecial_tokens: {pad_token: <pad>}\ntokens: &t [a, 'b', \"c\"]\n"
                                    "eot_tokens: *t\n"
                                    "test_datasets:\n  - path: x.jsonl\n    type: alpaca\n    roles: {user: [u]}\n";
    static const char junk[] = "{}[]:,-&*!|>'\"\n\t #<~\\x\xff\x00";
    char text[sizeof good];
    uint64_t seed = 1;
    int loaded = 0, refused = 0;
    nb_log_set_level(NB_LOG_QUIET);
    for (int i = 0; i < 3000; i++) {
        memcpy(text, good, sizeof good);
        for (int k = 0; k < 1 + i % 3; k++) {
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            text[(seed >> 33) % (sizeof good - 1)] = junk[(seed >> 50) % (sizeof junk - 1)];
        }
        nb_config c;
        if (load_bytes(&c, text, sizeof good - 1, NULL, 0) == NB_OK) {
            nb_config_free(&c);
            loaded++;
        } else {
            assert_true(nb_message()[0] != 0);
            refused++;
        }
    }
    nb_log_set_level(NB_LOG_INFO);
    assert_true(loaded > 100 && refused > 1000);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults), cmocka_unit_test(test_typed_by_key), cmocka_unit_test(test_spellings_of_checkpointing),
        cmocka_unit_test(test_other_tools_names),
        cmocka_unit_test(test_anchors),  cmocka_unit_test(test_env),          cmocka_unit_test(test_set),
        cmocka_unit_test(test_mistakes), cmocka_unit_test(test_whole_file),   cmocka_unit_test(test_caps),
        cmocka_unit_test(test_resolve),  cmocka_unit_test(test_choices),      cmocka_unit_test(test_names),
        cmocka_unit_test(test_jinja),    cmocka_unit_test(test_mutated),  cmocka_unit_test(test_devices),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
