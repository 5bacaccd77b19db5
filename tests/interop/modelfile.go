// Renders conversations with a Modelfile's template as Ollama does: Go's text/template over System and Messages.
//
//	go run modelfile.go <IN.json >OUT.json     IN: {"template": text, "conversations": [[{"role", "content"}]]}; OUT: texts
package main

import (
	"encoding/json"
	"log"
	"os"
	"strings"
	"text/template"
)

type message struct{ Role, Content string }

func main() {
	var in struct {
		Template      string
		Conversations [][]message
	}
	if err := json.NewDecoder(os.Stdin).Decode(&in); err != nil {
		log.Fatal(err)
	}
	t, err := template.New("").Option("missingkey=zero").Parse(in.Template)
	if err != nil {
		log.Fatal(err)
	}
	texts := []string{}
	for _, messages := range in.Conversations {
		var system []string
		for _, m := range messages {
			if m.Role == "system" {
				system = append(system, m.Content)
			}
		}
		var out strings.Builder
		data := map[string]any{"System": strings.Join(system, "\n\n"), "Messages": messages, "Response": ""}
		if err := t.Execute(&out, data); err != nil {
			log.Fatal(err)
		}
		texts = append(texts, out.String())
	}
	if err := json.NewEncoder(os.Stdout).Encode(texts); err != nil {
		log.Fatal(err)
	}
}
