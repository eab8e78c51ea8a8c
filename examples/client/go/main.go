// Asks a generator one question over three passages: once at a blow, once in pieces.
//
//	go run . -address localhost:7002 -model base
//
// TUNETRIAL_TOKEN holds a bearer token where the generator wants one; it is sent over TLS only (-ca).
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	commonv1 "example.com/ask/stubs/tunetrial/common/v1"
	generatorv1 "example.com/ask/stubs/tunetrial/generator/v1"
)

// Calls that change nothing may be sent again, and only while the generator is away.
const serviceConfig = `{
  "loadBalancingConfig": [{"round_robin": {}}],
  "methodConfig": [{
    "name": [{"service": "tunetrial.generator.v1.GeneratorService", "method": "Answer"}],
    "retryPolicy": {
      "maxAttempts": 5, "initialBackoff": "0.2s", "maxBackoff": "5s", "backoffMultiplier": 2,
      "retryableStatusCodes": ["UNAVAILABLE"]
    }
  }]
}`

// bearer sends a token with each call. gRPC refuses to send it over a channel without TLS.
type bearer string

func (token bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(token)}, nil
}

func (bearer) RequireTransportSecurity() bool { return true }

func main() {
	log.SetFlags(0)
	address := flag.String("address", "localhost:7002", "host:port of the generator")
	model := flag.String("model", "base", "base, adapter or alias")
	question := flag.String("question", "Where was Lomira born?", "what to ask")
	ca := flag.String("ca", "", "PEM file with the CA of the generator's certificate; turns TLS on")
	flag.Parse()
	if err := ask(*address, *model, *question, *ca); err != nil {
		log.Fatal(explain(err))
	}
}

func ask(address, model, question, ca string) error {
	channel, err := dial(address, ca, os.Getenv("TUNETRIAL_TOKEN"))
	if err != nil {
		return err
	}
	defer channel.Close()
	generator := generatorv1.NewGeneratorServiceClient(channel)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	request := &generatorv1.AnswerRequest{
		Model:    model,
		Question: question,
		Source: &generatorv1.AnswerRequest_Passages{Passages: &generatorv1.PassageList{Passages: []*commonv1.Passage{
			{Id: "d#1", Text: "Bakodu was born in Tazopi."},
			{Id: "d#2", Text: "Lomira was born in Revuna."},
			{Id: "d#3", Text: "The markets of Tetali are known for their cloth."},
		}}},
		Decoding: &generatorv1.Decoding{MaxTokens: proto.Int32(24)},
	}
	answer, err := generator.Answer(ctx, request)
	if err != nil {
		return err
	}
	fmt.Println("answer:", answer.GetText())
	for _, citation := range answer.GetCitations() {
		fmt.Println("cites:", citation.GetPassageId())
	}

	stream, err := generator.StreamAnswer(ctx, &generatorv1.StreamAnswerRequest{Answer: request})
	if err != nil {
		return err
	}
	for {
		response, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		switch part := response.GetPart().(type) {
		case *generatorv1.StreamAnswerResponse_Shown:
			fmt.Print("passages: ", len(part.Shown.GetHits()), "\nstreamed: ")
		case *generatorv1.StreamAnswerResponse_Text:
			fmt.Print(part.Text)
		case *generatorv1.StreamAnswerResponse_Done:
			fmt.Printf("\ntokens: %d\n", part.Done.GetUsage().GetCompletionTokens())
		}
	}
}

func dial(address, ca, token string) (*grpc.ClientConn, error) {
	options := []grpc.DialOption{grpc.WithDefaultServiceConfig(serviceConfig)}
	if ca == "" {
		options = append(options, grpc.WithTransportCredentials(insecure.NewCredentials()))
	} else {
		tls, err := credentials.NewClientTLSFromFile(ca, "")
		if err != nil {
			return nil, err
		}
		options = append(options, grpc.WithTransportCredentials(tls))
	}
	if token != "" {
		options = append(options, grpc.WithPerRPCCredentials(bearer(token)))
	}
	return grpc.NewClient(address, options...)
}

// explain names the stable reason of a failure and, where there is one, the time to wait.
func explain(err error) string {
	failed := status.Convert(err)
	text := fmt.Sprintf("%s: %s", failed.Code(), failed.Message())
	for _, detail := range failed.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			text += fmt.Sprintf(" [%s]", detail.GetReason())
		case *errdetails.RetryInfo:
			text += fmt.Sprintf(" (again after %s)", detail.GetRetryDelay().AsDuration())
		}
	}
	return text
}
